#!lua flags=allow-oom
-- fence.lua: a write that leaves nothing behind, for WAIT to wait for.
-- WAIT is about the last write of its connection, and a repeated script may have found all of it written by another one.
-- KEYS[1] jw:{<tag>}:   prefix of a key in the slot of what was written before
--           fence   STRING  is never there when this ends
-- Returns 1
local P = KEYS[1]
redis.call('SET', P .. 'fence', '')
return redis.call('DEL', P .. 'fence')

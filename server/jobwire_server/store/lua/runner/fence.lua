#!lua flags=allow-oom
-- fence.lua: a write that leaves nothing behind, for WAIT to wait for.
-- WAIT waits for the last write of its own connection, and a repeated script may find everything written by another one.
-- KEYS[1] jw:{<tag>}:   prefix of a key in the slot of what was written before
--           fence   STRING  gone when this ends
-- Returns 1
local P = KEYS[1]
redis.call('SET', P .. 'fence', '')
return redis.call('DEL', P .. 'fence')

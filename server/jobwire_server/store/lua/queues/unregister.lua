#!lua flags=allow-oom
-- unregister.lua: notes that a queue is deleted, for the servers that know it, and takes it off the registry.
-- KEYS[1] jw:{queues}:   prefix of the registry: all (register.lua)
--           deleted  ZSET  queue, by the moment of its last deletion, ms
-- ARGV[1] clock shift, ms
-- ARGV[2] the queue
-- ARGV[3] 1: take it off; 0: only note that this is about to happen
-- ARGV[4] how long notes are kept, ms
-- Returns DONE
--constants codes
--include clock

local P = KEYS[1]
local now = clock_ms(ARGV[1])
redis.call('ZADD', P .. 'deleted', now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', P .. 'deleted', '-inf', '(' .. (now - ARGV[4]))
if ARGV[3] == '1' then redis.call('ZREM', P .. 'all', ARGV[2]) end
return DONE

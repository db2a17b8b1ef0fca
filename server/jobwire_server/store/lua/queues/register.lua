#!lua
-- register.lua: adds a queue to the registry.
-- KEYS[1] jw:{queues}:   prefix of the registry: all
--           all      ZSET  the name of every queue, scored 0
-- ARGV[1] its name
-- ARGV[2] the most queues that there may be, 0 any number
-- Returns DONE | TOO_MANY_QUEUES there are so many already
--constants codes

local P = KEYS[1]
local most = tonumber(ARGV[2])
if most > 0 and redis.call('ZCARD', P .. 'all') >= most and not redis.call('ZSCORE', P .. 'all', ARGV[1]) then
  return TOO_MANY_QUEUES
end
redis.call('ZADD', P .. 'all', 0, ARGV[1])
return DONE

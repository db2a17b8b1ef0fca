#!lua flags=allow-oom
-- pause.lua: stops or starts the deliveries of a queue.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: config (claim.lua)
-- ARGV[1] paused 0|1
-- Returns 1

local P = KEYS[1]
if ARGV[1] == '1' then
  redis.call('HSET', P .. 'config', 'paused', 1)
else
  redis.call('HDEL', P .. 'config', 'paused')
  -- Whoever waits, on any route, looks again.
  redis.pcall('SPUBLISH', P .. 'ready', '*')
end
return 1

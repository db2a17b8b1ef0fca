#!lua flags=allow-oom
-- worker_break.lua: notes that a worker's stream broke, or that the worker did not come back in time.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen lost forget (worker_attach.lua)
-- ARGV[1] clock shift, ms   ARGV[2] id   ARGV[3] session
-- ARGV[4] 'broken' | 'gone'   ARGV[5] how long lost workers are listed, ms
-- Returns 1 done | 0 another stream counts by now, the worker is no longer known, or it was heard of since the break
--include clock

local P, id = KEYS[1], ARGV[2]
local key = P .. 'w:' .. id
local now = clock_ms(ARGV[1])
if redis.call('HGET', key, 'session') ~= ARGV[3] then return 0 end
if ARGV[4] == 'broken' then
  redis.call('HSET', key, 'up', 0, 'broke', now)
else
  -- A worker whose loop stands still can't attach again, but says by calls that it lives. Should these
  -- end as well, the sweep finds it.
  local seen = tonumber(redis.call('ZSCORE', P .. 'seen', id) or 0)
  if seen > tonumber(redis.call('HGET', key, 'broke') or now) then return 0 end
  redis.call('HSET', key, 'status', 4, 'lost', now, 'up', 0)
  redis.call('ZREM', P .. 'seen', id)
  redis.call('ZADD', P .. 'lost', now, id)
  redis.call('ZADD', P .. 'forget', now + tonumber(ARGV[5]), id)
end
redis.call('SPUBLISH', P .. 'changes', id .. ' ' .. ARGV[3])
return 1

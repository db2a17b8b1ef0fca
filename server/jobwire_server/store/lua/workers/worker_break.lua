#!lua flags=allow-oom
-- worker_break.lua: notes that a worker's stream broke, or that the worker did not come back in time.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen lost left forget changes (worker_attach.lua, worker_register.lua)
-- ARGV[1] clock shift, ms   ARGV[2] id   ARGV[3] session   ARGV[4] since when it counts, Unix ms
-- ARGV[5] 'broken' | 'gone'   ARGV[6] how long lost workers are listed, ms
-- ARGV[7] with 'gone': the moment after which it is too late to judge, Unix ms
-- ARGV[8] with 'gone': 'c' | 'u' its process seems to live (worker_register.lua, left)
-- Returns now in Unix ms: done | 0 a newer stream counts by now, the worker is no longer known, or it was heard from since the break |
--   -1 too late, nothing was done
--constants workers
--include clock fields

local P, id = KEYS[1], ARGV[2]
local key = P .. 'w:' .. id
local now = clock_ms(ARGV[1])
-- A sign of life of the stream that broke may have been on its way.
local UNDER_WAY_MS = 100
local read_worker = reader_of({ session = 'session', since = 'since', spec = 'spec' })
local worker = read_worker(key)
-- An older session is all that a new primary knows if it never heard of this stream.
if not worker.session or (worker.session ~= ARGV[3] and tonumber(worker.since) >= tonumber(ARGV[4])) then return 0 end
if ARGV[5] == 'broken' then
  redis.call('HSET', key, 'session', ARGV[3], 'since', ARGV[4], 'up', 0, 'broke', now)
elseif now > tonumber(ARGV[7]) then
  -- The store stood still, so the worker had no chance to come back.
  return -1
else
  -- A worker whose event loop is stuck can't attach again, but still makes calls that show that it lives. Should these
  -- end as well, the sweep finds it.
  local heard = tonumber(redis.call('ZSCORE', P .. 'seen', id) or ARGV[4])
  if heard > tonumber(redis.call('HGET', key, 'broke') or now) + UNDER_WAY_MS then return 0 end
  redis.call('HSET', key, 'status', LOST, 'lost', now, 'up', 0)
  redis.call('HSET', P .. 'left', id, ARGV[8] .. ' ' .. heard .. ' ' .. worker.spec)
  redis.call('ZREM', P .. 'seen', id)
  redis.call('ZADD', P .. 'lost', now, id)
  redis.call('ZADD', P .. 'forget', now + tonumber(ARGV[6]), id)
end
redis.pcall('SPUBLISH', P .. 'changes', id .. ' ' .. ARGV[3])
return now

#!lua flags=allow-oom
-- worker_sweep.lua: marks silent workers LOST, and forgets those that were lost long ago.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen ids lost forget changes (worker_register.lua)
-- ARGV[1] clock shift, ms   ARGV[2] silence that makes a worker lost, ms   ARGV[3] how long lost workers are listed, ms
-- ARGV[4] the most workers of each kind to handle in this call
-- Returns for each worker whose jobs are not back yet: id, when it was lost in Unix ms, spec
--include clock

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local most = tonumber(ARGV[4])
for _, id in ipairs(redis.call('ZRANGE', P .. 'seen', '-inf', now - tonumber(ARGV[2]), 'BYSCORE', 'LIMIT', 0, most)) do
  redis.call('HSET', P .. 'w:' .. id, 'status', 4, 'lost', now, 'up', 0)
  redis.call('ZREM', P .. 'seen', id)
  redis.call('ZADD', P .. 'lost', now, id)
  redis.call('ZADD', P .. 'forget', now + tonumber(ARGV[3]), id)
  redis.call('SPUBLISH', P .. 'changes', id)
end
for _, id in ipairs(redis.call('ZRANGE', P .. 'forget', '-inf', now, 'BYSCORE', 'LIMIT', 0, most)) do
  redis.call('DEL', P .. 'w:' .. id)
  for _, name in ipairs({ 'ids', 'lost', 'forget' }) do redis.call('ZREM', P .. name, id) end
end
local answer = {}
local lost = redis.call('ZRANGE', P .. 'lost', 0, most - 1, 'WITHSCORES')
for i = 1, #lost, 2 do
  local n = #answer
  answer[n + 1], answer[n + 2] = lost[i], lost[i + 1]
  answer[n + 3] = redis.call('HGET', P .. 'w:' .. lost[i], 'spec') or ''
end
return answer

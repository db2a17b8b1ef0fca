#!lua flags=allow-oom
-- worker_touch.lua: records a sign of life of each live worker.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen (worker_register.lua)
-- ARGV[1] clock shift, ms
-- then for each worker one: id
-- Returns for each worker its status, 0 if it is not known
--include clock

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local LOST = 4
local answer, seen = {}, {}
for at = 2, #ARGV do
  local status = tonumber(redis.call('HGET', P .. 'w:' .. ARGV[at], 'status') or 0)
  if status > 0 and status ~= LOST then
    seen[#seen + 1] = now
    seen[#seen + 1] = ARGV[at]
  end
  answer[#answer + 1] = status
end
if #seen > 0 then redis.call('ZADD', P .. 'seen', unpack(seen)) end
return answer

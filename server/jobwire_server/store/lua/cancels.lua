#!lua flags=allow-oom
-- cancels.lua: tells workers which of their jobs they are to stop, each once.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: j:<ulid> cancels:<worker> (cancel.lua)
-- then for each worker one: its id, in ARGV
-- Returns for each worker a list: for each job ulid, fencing token, deadline in Unix ms, reason

local P = KEYS[1]
local CANCELLING = '4'
local answer = {}
for at = 1, #ARGV do
  local worker, notices = ARGV[at], {}
  local key = P .. 'cancels:' .. worker
  for _, ulid in ipairs(redis.call('SMEMBERS', key)) do
    local job = redis.call('HMGET', P .. 'j:' .. ulid, 's', 'w', 't', 'cd', 'ca')
    if job[1] == CANCELLING and job[2] == worker then
      local n = #notices
      notices[n + 1], notices[n + 2], notices[n + 3], notices[n + 4] = ulid, job[3], job[4], job[5] or ''
    end
  end
  redis.call('DEL', key)
  answer[#answer + 1] = notices
end
return answer

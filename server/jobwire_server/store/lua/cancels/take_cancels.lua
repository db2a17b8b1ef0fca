#!lua flags=allow-oom
-- take_cancels.lua: tells workers which of their jobs to stop, each once.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: j:<ulid> cancels:<worker> (cancel.lua)
-- then for each worker one: its id, in ARGV
-- Returns for each worker a list: for each job ulid, fencing token, deadline in Unix ms, reason
--constants states
--include fields

local P = KEYS[1]
local read_job = reader_of({ state = 's', worker = 'w', token = 't', deadline = 'cd', reason = 'ca' })
local answer = {}
for at = 1, #ARGV do
  local worker, notices = ARGV[at], {}
  local key = P .. 'cancels:' .. worker
  for _, ulid in ipairs(redis.call('SMEMBERS', key)) do
    local job = read_job(P .. 'j:' .. ulid)
    if job.state == CANCELLING_TEXT and job.worker == worker then
      local n = #notices
      notices[n + 1], notices[n + 2], notices[n + 3], notices[n + 4] = ulid, job.token, job.deadline, job.reason or ''
    end
  end
  redis.call('DEL', key)
  answer[#answer + 1] = notices
end
return answer

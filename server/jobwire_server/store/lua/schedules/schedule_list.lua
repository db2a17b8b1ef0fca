#!lua flags=no-writes
-- schedule_list.lua: a page of the schedules by id, without their runs.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: schedule:<id> schedules (schedule_write.lua)
-- ARGV[1] the id behind which the page begins, '' for the first
-- ARGV[2] the most schedules of the page
-- ARGV[3] bytes of jobs after which the page ends
-- Returns {1 if there are more after it, else 0, then for each schedule: id, fields and values of its HASH}
local P = KEYS[1]
local most, bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
local from = ARGV[1] == '' and '-' or '(' .. ARGV[1]
local ids = redis.call('ZRANGE', P .. 'schedules', from, '+', 'BYLEX', 'LIMIT', 0, most + 1)
local answer = { 0 }

for at, id in ipairs(ids) do
  if at > most or bytes <= 0 then
    answer[1] = 1
    break
  end
  local key = P .. 'schedule:' .. id
  bytes = bytes - redis.call('HSTRLEN', key, 'job')
  answer[#answer + 1] = id
  answer[#answer + 1] = redis.call('HGETALL', key)
end
return answer

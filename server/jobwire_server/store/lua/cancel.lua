#!lua flags=allow-oom
-- cancel.lua: SCHEDULED or PENDING -> CANCELLED, RUNNING -> CANCELLING; CANCELLING and CANCELLED stay as they are.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: r:<ulid> j:<ulid> scheduled timers counts totals done:7 (end_attempt.lua)
--           signals           channel: the ULIDs of jobs whose worker should hear of it, end to end
--           cancels:<worker>  SET      ulids of jobs that the worker is to stop and has not been told of
--           cancels           channel: those workers, by spaces
-- ARGV[1] clock shift, ms
-- ARGV[2] grace of a running job, ms
-- ARGV[3] retention of jobs that have none of their own, ms
-- then for each job three: ulid, reason, states out of which it is to be cancelled, as digits ('' any)
-- Returns for each job {code, state}: code 0 done | 1 not found | 2 finished otherwise | 3 not in one of those states
--include clock tally unique terminal

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local grace, retention = tonumber(ARGV[2]), tonumber(ARGV[3])
local SCHEDULED, PENDING, RUNNING, CANCELLING, CANCELLED = 1, 2, 3, 4, 7
local answer, signals, workers, named = {}, {}, {}, {}

for at = 4, #ARGV, 3 do
  local ulid, reason, only = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local key = P .. 'j:' .. ulid
  local job = redis.call('HMGET', key, 's', 'v', 'b', 'uk', 'kp', 'w')
  local state = tonumber(job[1] or PENDING)
  if redis.call('EXISTS', P .. 'r:' .. ulid) == 0 then
    answer[#answer + 1] = { 1 }
  elseif only ~= '' and not string.find(only, state, 1, true) then
    answer[#answer + 1] = { 3, state }
  elseif state == SCHEDULED or state == PENDING then
    -- A PENDING job's entry on its route goes stale; the next claim that meets it drops it.
    if state == SCHEDULED then redis.call('ZREM', P .. 'scheduled', ulid) end
    redis.call('HSET', key, 'ca', reason)
    enter_terminal(P, ulid, CANCELLED, (job[2] or 0) + 1, now, retention, job[3], job[4], job[5])
    moved(ulid, state, CANCELLED)
    total('cancelled')
    answer[#answer + 1] = { 0, CANCELLED }
  elseif state == RUNNING then
    redis.call('HSET', key, 's', CANCELLING, 'v', job[2] + 1, 'ca', reason, 'cd', now + grace)
    redis.call('ZADD', P .. 'timers', now + grace, 'c' .. ulid)
    moved(ulid, RUNNING, CANCELLING)
    signals[#signals + 1] = ulid
    redis.call('SADD', P .. 'cancels:' .. job[6], ulid)
    if not named[job[6]] then
      named[job[6]] = true
      workers[#workers + 1] = job[6]
    end
    answer[#answer + 1] = { 0, CANCELLING }
  else
    answer[#answer + 1] = { (state == CANCELLING or state == CANCELLED) and 0 or 2, state }
  end
end

publish_tally(P)
if #signals > 0 then
  redis.call('SPUBLISH', P .. 'signals', table.concat(signals))
  redis.call('SPUBLISH', P .. 'cancels', table.concat(workers, ' '))
end
return answer

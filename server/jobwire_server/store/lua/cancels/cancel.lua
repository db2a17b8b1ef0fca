#!lua flags=allow-oom
-- cancel.lua: SCHEDULED or PENDING -> CANCELLED, RUNNING -> CANCELLING; CANCELLING and CANCELLED stay as they are.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: r:<ulid> j:<ulid> scheduled timers counts totals done:7 (end_attempt.lua)
--           cancels:<worker>  SET      ulids of jobs that the worker is to stop and has not been told of
--           signals cancels   channels (include/signals.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] grace of a running job, ms
-- ARGV[3] retention of jobs that have none of their own, ms
-- then for each job three: ulid, reason, states out of which it is to be cancelled, as digits ('' any)
-- Returns for each job {code, state}: DONE | NOT_FOUND | WRONG_STATE it has ended otherwise | STATE_CHANGED it is in none of those states
--constants states codes
--include clock fields tally signals state holder unique terminal cancel

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local answer = {}

for at = 4, #ARGV, 3 do
  answer[#answer + 1] = cancel_job(P, ARGV[at], ARGV[at + 1], ARGV[at + 2], now, tonumber(ARGV[2]), tonumber(ARGV[3]))
end

publish_tally(P)
publish_signals(P)
return answer

#!lua flags=allow-oom
-- claim.lua: PENDING -> RUNNING for as many jobs as the requests ask for and their routes have.
-- Highest priority first, then the oldest id over all the routes of a request; where the queue lets priorities age, by what they
-- count as now. Jobs that were cancelled, expired, missed their deadline or were claimed by id leave stale entries behind, which are
-- dropped here.
-- KEYS[1] jw:{<queue>}:                    prefix of every key of the queue:
--           r:<ulid> j:<ulid> c:<ulid> l:<route> z:<route> ready timers counts totals (submit.lua)
--           leases                 ZSET    ulid -> end of the lease, Unix ms
--           held:<worker>          SET     ulids that the worker holds
--           config                 HASH    paused = 1; ageing -> the wait that counts as one priority, ms (include/ageing.lua)
--           done:6 done:8          ZSET    ulid -> when a job that missed its deadline, or expired, may be forgotten, Unix ms
--           claimed:<server>       STRING  the server's last answer that brought something, kept for 60 s (include/lost_answers.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] server id
-- ARGV[3] number of this call, unique within the server: a call that is repeated because its answer was lost gets that answer
-- ARGV[4] number of the last call that brought something and whose answer the server heard, 0 for none
-- ARGV[5] retention of jobs that turn out to be expired or past their deadline and have none of their own, ms
-- ARGV[6] number of route sets, then for each: the number of its routes, the routes
-- then for each request four: worker, most jobs (or <most jobs>/<most bytes>), lease in ms, number of its route set from 1
-- Returns {now, paused 0|1, unheard, then for each request {more 0|1, then for each job ulid, fencing token, attempt, record}};
--   attempt: its number, or {number, checkpoint} for a job with a checkpoint
--   more = 1: stopped early at the bound on stale entries, or on bytes, ask again; or all that was asked for, and its routes have more
--   unheard: three values for each job of an earlier call whose answer was lost for good: worker, ulid, fencing token
--constants states
--include clock numbers tally chunks state holder unique terminal ageing requests records lost_answers popping leasing

local P = KEYS[1]
tally.none_ends = true
local answer = lease_jobs(P, clock_ms(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), 7, #ARGV)
publish_tally(P)
return answer

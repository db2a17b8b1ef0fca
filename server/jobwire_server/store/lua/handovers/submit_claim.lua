#!lua
-- submit_claim.lua: submit.lua and then claim.lua in one step, for jobs that a worker of the server waits for: new -> PENDING or SCHEDULED
-- -> RUNNING. What is handed over in the same call is not announced as ready; the rest is, as ever.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue (submit.lua), (claim.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] retention of jobs that are replaced, expired or past their deadline and have none of their own, ms
-- ARGV[3] the most jobs that may be SCHEDULED and PENDING together, 0 for no limit
-- ARGV[4] the most bytes of records of live jobs, 0 for no limit
-- ARGV[5] server id
-- ARGV[6] number of this call among the server's claims   ARGV[7] number of the last claim that brought something and was heard (claim.lua)
-- ARGV[8] number of route sets, which follow ARGV[9], and then the requests, all as in claim.lua
-- ARGV[9] index of the argument behind those: number of distinct routes, then for each: route, descriptor
-- then for each job six: as in submit.lua
-- Returns {what submit.lua does, what claim.lua does}. A repeated call finds its jobs by their ids, and gets its claim again.
--   Of submit.lua: SAME_ID SAME_REQUEST REQUEST_ID_REUSED KEY_HOLDER KEY_TAKEN TOO_MANY_PENDING TOO_MANY_BYTES
--constants states codes
--include clock numbers start ready tally chunks state holder unique terminal identity limits admit enter ageing requests records lost_answers popping leasing

local P = KEYS[1]
local now = clock_ms(ARGV[1])
tally.none_ends = true
local routes_at = tonumber(ARGV[9])
local first = routes_at + 1 + 2 * ARGV[routes_at]

local accepted = { now }
enter_jobs(P, now, accepted, ARGV, first, tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]))
if tally.totals.submitted then
  for at = routes_at + 1, first - 1, 2 do
    redis.call('HSETNX', P .. 'routes', ARGV[at], ARGV[at + 1])
  end
end

local leased, claimed = lease_jobs(P, now, ARGV[5], ARGV[6], ARGV[7], ARGV[2], tonumber(ARGV[8]), 10, routes_at - 1)
for i = 2, #accepted do
  local at = first + 6 * (i - 2)
  -- Not one that was there before this call: that was announced when it came.
  if accepted[i] == PENDING and claimed[ARGV[at]] then
    local left = woken[ARGV[at + 1]] - 1
    woken[ARGV[at + 1]] = left > 0 and left or nil
  end
end
publish_tally(P)
publish_ready(P)
return { accepted, leased }

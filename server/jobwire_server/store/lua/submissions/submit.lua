#!lua
-- submit.lua: new -> PENDING or SCHEDULED for each job whose id is new, unless its request id, its unique key or a limit of the queue
-- decides otherwise. A full store refuses the whole batch before its first write.
-- KEYS[1] jw:{<queue>}:            prefix of every key of the queue:
--           r:<ulid>       STRING  the record, as it is handed to workers
--           j:<ulid>       HASH    the changing part; absent for a job that is PENDING, never claimed and all default
--           l:<route> z:<route>    ready jobs (include/ready.lua)
--           ready          HASH    route -> entries
--           routes         HASH    route -> descriptor
--           scheduled      ZSET    ulid -> due, Unix ms
--           timers         ZSET    'e' .. ulid -> expiry, 'd' .. ulid -> deadline, Unix ms
--           q:<request>    STRING  for 24 hours: ulid that was answered, ulid that was proposed, digest of the content (32
--                                  characters), end in Unix ms, end to end
--           u:<name>       STRING  unique key -> holder (include/holder.lua)
--           done:7         ZSET    a job that was replaced -> when it may be forgotten
--           counts totals usage HASH (include/tally.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] retention of jobs that are replaced and have none of their own, ms
-- ARGV[3] the most jobs that may be SCHEDULED and PENDING together, 0 for no limit
-- ARGV[4] the most bytes of records of live jobs, 0 for no limit
-- ARGV[5] number of distinct routes, then for each: route, descriptor
-- then for each job six: ulid, route, priority 0..255 ('q' before it: of the queue, and to be noted with the job),
--   start ('' at once, '<ms>' not before that Unix ms, '+<ms>' not before so many ms from now),
--   extra ('' | a JSON list of alternating HASH fields and values | a JSON object: f that list; q request id, d digest of the content,
--     j 1 if the producer chose the ulid; u scope and name of the unique key, t its period in ms, c what happens on a conflict: 1 the
--     holder is answered, 2 a refusal, 3 a holder that never started is replaced), record
-- Returns {now in Unix ms, then for each job its state, or
--   {SAME_ID, state, record} of the job that has its id | {SAME_REQUEST, state, ulid} of the job that its request id stands for, state
--   0 if that is forgotten | {REQUEST_ID_REUSED} its request id was used for other content | {KEY_HOLDER, state, ulid} of the job that
--   holds its unique key, which is the answer | {KEY_TAKEN, state, ulid} of the holder, for which it is refused |
--   {TOO_MANY_PENDING, jobs that wait} | {TOO_MANY_BYTES, live bytes} the queue is at its limit}
--constants states codes
--include clock start ready tally chunks state holder unique terminal identity limits admit enter

local P = KEYS[1]
local now = clock_ms(ARGV[1])
tally.none_ends = true
-- The routes come before the jobs.
local first = 6 + 2 * ARGV[5]
local answer = { now }
enter_jobs(P, now, answer, ARGV, first, tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]))
if tally.totals.submitted then
  for at = 6, first - 1, 2 do
    redis.call('HSETNX', P .. 'routes', ARGV[at], ARGV[at + 1])
  end
  publish_tally(P)
  publish_ready(P)
end
return answer

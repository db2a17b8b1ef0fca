#!lua
-- fire.lua: settles moments of schedules: each gets its job, or is left out, and the schedule moves on to its next moment; once,
-- however many servers try. A full store refuses the whole batch.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: schedule:<id> due (schedule_write.lua), those of submit.lua (submit.lua),
--           those of cancel.lua (cancel.lua)
--           runs:<id>  LIST  the latest runs of a schedule (include/runs.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] grace of a running job that is cancelled, ms   ARGV[3] retention of jobs that end here, ms
-- ARGV[4] the most jobs that may wait in the queue, 0 for no limit   ARGV[5] the most bytes of live jobs, 0 for no limit
-- ARGV[6] priority of jobs that name none, as submit.lua takes it
-- then for each moment twelve: schedule id, its creation id with '.' and its revision, the moment that it stands at, its next moment (''
--   if it is over), moments before this one that were missed, what is to be done: 'pass' no job | 'allow' a job |
--   'skip' a job unless an earlier one has not ended | 'cancel' a job, and earlier ones are cancelled,
--   then of the job: ulid, the moment that it runs for, when it becomes ready ('' at once, Unix ms), what is appended to its record, when
--   it expires, when it ends ('' never, Unix ms)
-- Returns {now, the earliest moment of any schedule or 0, then for each a code}: DONE a job was submitted | RUN_PASSED without a job |
--   RUN_SKIPPED because of an earlier job or the holder of its unique key | SCHEDULE_CHANGED since the decision: nothing done |
--   RUN_HELD_BACK the queue is at its limit: nothing done
--constants states codes
--include clock fields start ready tally signals chunks state holder unique terminal identity limits admit enter cancel runs ends

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local grace, retention = tonumber(ARGV[2]), tonumber(ARGV[3])
local codes, jobs, entering = {}, {}, {}
local known, stands = {}, {}
local read_schedule = reader_of({
  creation_id = 'cid', revision = 'rev', due = 'due', route = 'rt', priority = 'p', extra = 'x', descriptor = 'rd',
})

-- Returns the code of a moment whose job was entered. A job that exists already is its own, and may have been noted.
local function settled(entry, id, ulid)
  if type(entry) == 'number' then return DONE end
  local code = entry[1]
  if code == SAME_ID then return was_noted(P, id, ulid) and RUN_PASSED or DONE end
  return (code == TOO_MANY_PENDING or code == TOO_MANY_BYTES) and RUN_HELD_BACK or RUN_SKIPPED
end

for at = 7, #ARGV, 12 do
  local id, expected, due, action = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 5]
  local key = P .. 'schedule:' .. id
  local found = known[id]
  if not found then
    found = read_schedule(key)
    known[id] = found
    -- Where the schedule will stand when the items before this one are done.
    stands[id] = found.due
  end
  if not found.creation_id or found.creation_id .. '.' .. found.revision ~= expected or stands[id] ~= due then
    codes[at] = SCHEDULE_CHANGED
  else
    stands[id] = ARGV[at + 3]
    local earlier = (action == 'skip' or action == 'cancel') and unfinished_runs(P, id) or {}
    if action == 'pass' then
      codes[at] = RUN_PASSED
    elseif action == 'skip' and #earlier > 0 then
      codes[at] = RUN_SKIPPED
    else
      for _, ulid in ipairs(earlier) do cancel_job(P, ulid, 'the next run of its schedule is due', '', now, grace, retention) end
      local record = redis.call('HGET', key, 'job') .. ARGV[at + 9]
      local size = #jobs
      jobs[size + 1], jobs[size + 2], jobs[size + 3] = ARGV[at + 6], found.route, found.priority == '' and ARGV[6] or found.priority
      jobs[size + 4], jobs[size + 5], jobs[size + 6] = ARGV[at + 8], extra_with_ends(found.extra, ARGV[at + 10], ARGV[at + 11]), record
      redis.call('HSETNX', P .. 'routes', found.route, found.descriptor)
      entering[#entering + 1] = at
    end
  end
end

local entered = {}
if #jobs > 0 then enter_jobs(P, now, entered, jobs, 1, retention, tonumber(ARGV[4]), tonumber(ARGV[5])) end
for i, at in ipairs(entering) do codes[at] = settled(entered[i], ARGV[at], ARGV[at + 6]) end

local answer, held = { now, 0 }, {}
for at = 7, #ARGV, 12 do
  local id, code = ARGV[at], codes[at]
  local key = P .. 'schedule:' .. id
  -- What follows a moment that is held back waits for it.
  if held[id] and code ~= SCHEDULE_CHANGED then code = RUN_HELD_BACK end
  if code == RUN_HELD_BACK then held[id] = true end
  if code == DONE or code == RUN_PASSED or code == RUN_SKIPPED then
    if tonumber(ARGV[at + 4]) > 0 then redis.call('HINCRBY', key, 'm', ARGV[at + 4]) end
    if code == DONE then
      note_run(P, id, ARGV[at + 7], now, ARGV[at + 6], false)
      redis.call('HSET', key, 'last', ARGV[at + 6])
    elseif code == RUN_SKIPPED then
      redis.call('HINCRBY', key, 'k', 1)
    end
    if ARGV[at + 3] == '' then
      redis.call('HDEL', key, 'due')
      redis.call('ZREM', P .. 'due', id)
    else
      redis.call('HSET', key, 'due', ARGV[at + 3])
      redis.call('ZADD', P .. 'due', ARGV[at + 3], id)
    end
  end
  answer[#answer + 1] = code
end
publish_tally(P)
publish_ready(P)
publish_signals(P)
local head = redis.call('ZRANGE', P .. 'due', 0, 0, 'WITHSCORES')
answer[2] = tonumber(head[2] or 0)
return answer

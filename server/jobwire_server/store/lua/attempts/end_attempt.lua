#!lua flags=allow-oom
-- end_attempt.lua: RUNNING or CANCELLING -> PENDING, SCHEDULED, FAILED or CANCELLED for each item whose lease and state are still
-- those that its decision was made on. The attempt goes into the job's history.
-- KEYS[1] jw:{<queue>}:          prefix of every key of the queue:
--           j:<ulid> leases held:<worker> timers scheduled l:<route> z:<route> ready counts totals (claim.lua)
--           h:<ulid>     LIST    attempts that ended, oldest first, the latest 100:
--                                "<number> <token> <start ms> <end ms> <outcome> <worker>[ <state> <due>]\n<failure>"
--                                (include/recorded.lua)
--           done:<state> ZSET    ulid -> when it may be forgotten, Unix ms
--           signals      channel: ULIDs of jobs whose worker no longer holds them (include/signals.lua)
--           cancels:<worker>  SET  (cancel.lua)   cancels  channel (include/signals.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] retention of terminal jobs that have none of their own, ms
-- then for each item ten: ulid, worker, fencing token, state decided on,
--   condition ('worker' the caller holds the lease | 'lease' the lease has run out | 'timeout' | 'deadline' | 'grace' that timer is due |
--     'lost' the worker was lost, has left, or never got the job),
--   target state, budget field to add one to ('f' | 'c' | 'i' | 'l' | ''), backoff in ms for SCHEDULED, outcome, failure ('' for none)
-- Returns for each item {code, state, due}: DONE now, or with a 1 behind it what the caller was answered before for the end of this
--   attempt, whatever it says now | NOT_FOUND | LEASE_LOST, or the condition is not met | STATE_CHANGED: read again and decide again
--constants states codes
--include clock fields ready tally signals state holder unique terminal recorded

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local retention = tonumber(ARGV[2])
-- The outcome of an attempt that never reached its worker.
local UNDELIVERED = '7'
local HISTORY = 100
-- Condition -> the kind of its entry in timers.
local TIMERS = { timeout = 't', deadline = 'd', grace = 'c' }
local answer = {}
local read_job = reader_of({
  state = 's', token = 't', worker = 'w', revision = 'v', attempt = 'n', started_at = 'a', route = 'rt', priority = 'p', due = 'd',
  expires_at = 'ex', output_end = 'oe', bytes = 'b', unique = 'uk', retention = 'kp',
})

local function condition_met(condition, ulid)
  local score
  if condition == 'lease' then
    score = redis.call('ZSCORE', P .. 'leases', ulid)
  elseif TIMERS[condition] then
    score = redis.call('ZSCORE', P .. 'timers', TIMERS[condition] .. ulid)
  else
    return true
  end
  return score and tonumber(score) <= now
end

-- Returns why the end does not apply, as it is answered; nil if it does.
local function refusal(ulid, job, worker, token, decided_on, condition)
  local state, by_holder = tonumber(job.state), condition == 'worker'
  if not state then
    return { redis.call('EXISTS', P .. 'r:' .. ulid) == 1 and LEASE_LOST or NOT_FOUND }
  elseif job.token ~= token or job.worker ~= worker then
    -- Once the job is claimed again, only the history knows who had it before, and what was recorded.
    return by_holder and recorded_end(P, ulid, token, worker) or { LEASE_LOST }
  elseif state ~= RUNNING and state ~= CANCELLING then
    -- The holder ended this attempt already, so a repeated call gets the first answer; by the state that the job has come to where
    -- it succeeded, or where an entry of a former release tells no more.
    return by_holder and (recorded_end(P, ulid, token, worker)
      or { DONE, state, state == SCHEDULED and tonumber(job.due) or 0, 1 }) or { LEASE_LOST }
  elseif state ~= decided_on then
    return { STATE_CHANGED }
  elseif not condition_met(condition, ulid) then
    return { LEASE_LOST }
  end
  return nil
end

for at = 3, #ARGV, 10 do
  local ulid, worker, condition = ARGV[at], ARGV[at + 1], ARGV[at + 4]
  local key = P .. 'j:' .. ulid
  local job = read_job(key)
  local refused = refusal(ulid, job, worker, ARGV[at + 2], tonumber(ARGV[at + 3]), condition)
  if refused then
    answer[#answer + 1] = refused
  else
    local state, target, budget, outcome = tonumber(job.state), tonumber(ARGV[at + 5]), ARGV[at + 6], ARGV[at + 8]
    local due_at = target == SCHEDULED and now + tonumber(ARGV[at + 7]) or 0
    local told = condition == 'worker' and ' ' .. target .. ' ' .. string.format('%d', due_at) or ''
    local ended = redis.call('RPUSH', P .. 'h:' .. ulid, job.attempt .. ' ' .. job.token .. ' ' .. job.started_at .. ' ' .. now .. ' '
      .. outcome .. ' ' .. worker .. told .. '\n' .. ARGV[at + 9])
    if ended > HISTORY then redis.call('LTRIM', P .. 'h:' .. ulid, -HISTORY, -1) end
    if budget ~= '' then redis.call('HINCRBY', key, budget, 1) end
    -- An attempt that never reached its worker is not one: the next delivery gets its number.
    -- One that has written output did reach it: its number tags that output.
    local undone = outcome == UNDELIVERED and string.match(job.output_end or '', '^%d+') ~= job.attempt
    if undone then redis.call('HINCRBY', key, 'n', -1) end
    -- Only the holder's own ending leaves its name, by which its repeated call is told from a zombie's.
    if condition ~= 'worker' then
      redis.call('HDEL', key, 'w')
      signal(ulid)
    end
    redis.call('ZREM', P .. 'leases', ulid)
    redis.call('SREM', P .. 'held:' .. worker, ulid)
    redis.call('ZREM', P .. 'timers', 't' .. ulid, 'c' .. ulid)
    if state == CANCELLING then redis.call('SREM', P .. 'cancels:' .. worker, ulid) end
    if target == PENDING then
      redis.call('HSET', key, 's', PENDING, 'v', job.revision + 1, 'ps', now)
      push_ready(P, ulid, job.route, job.priority, true)
      -- Back before its first attempt, so it may expire again.
      if job.expires_at and undone and job.attempt == '1' then
        redis.call('ZADD', P .. 'timers', job.expires_at, 'e' .. ulid)
      end
      moved(ulid, state, target)
    elseif target == SCHEDULED then
      redis.call('HSET', key, 's', SCHEDULED, 'v', job.revision + 1, 'd', due_at)
      redis.call('ZADD', P .. 'scheduled', due_at, ulid)
      moved(ulid, state, target)
      total('retried')
    else
      enter_terminal(P, ulid, job, target, now, retention)
    end
    if budget == 'c' then total('crashed') elseif budget == 'i' then total('released') end
    answer[#answer + 1] = { DONE, target, due_at }
  end
end

publish_tally(P)
publish_ready(P)
publish_signals(P)
return answer

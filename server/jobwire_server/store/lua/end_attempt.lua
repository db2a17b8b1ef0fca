#!lua flags=allow-oom
-- end_attempt.lua: RUNNING or CANCELLING -> PENDING, SCHEDULED, FAILED or CANCELLED for each item whose lease and state are still
-- those that its decision was made on. The attempt goes into the job's history.
-- KEYS[1] jw:{<queue>}:          prefix of every key of the queue:
--           j:<ulid> leases held:<worker> timers scheduled l:<route> z:<route> ready counts totals (claim.lua)
--           h:<ulid>     LIST    attempts that ended, oldest first, the latest 100:
--                                "<number> <token> <start ms> <end ms> <outcome> <worker>[ <state> <due>]\n<failure>"
--                                (include/recorded.lua)
--           done:<state> ZSET    ulid -> when it may be forgotten, Unix ms
--           signals      channel, and cancels:<worker> (cancel.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] retention of terminal jobs that have none of their own, ms
-- then for each item ten: ulid, worker, fencing token, state decided on,
--   condition ('worker' the caller holds the lease | 'lease' the lease has run out | 'timeout' | 'deadline' | 'grace' that timer is due |
--     'lost' the worker was lost, has left, or never got the job),
--   target state, budget field to add one to ('f' | 'c' | 'i' | 'l' | ''), backoff in ms for SCHEDULED, outcome, failure ('' for none)
-- Returns for each item {code, state, due}: code 0 done now, or with a 1 behind it what the caller was answered before for the end of
--   this attempt, whatever it says now | 1 not found | 2 lease lost or condition not met | 3 the state is another: read again and decide again
--include clock ready tally holder unique terminal recorded

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local retention = tonumber(ARGV[2])
local SCHEDULED, PENDING, RUNNING, CANCELLING, FAILED = 1, 2, 3, 4, 6
local UNDELIVERED = '7'
local HISTORY = 100
local TOTALS = { [SCHEDULED] = 'retried', [FAILED] = 'failed', [7] = 'cancelled' }
local answer, woken, signals = {}, {}, {}

local function due(condition, ulid)
  local score
  if condition == 'lease' then
    score = redis.call('ZSCORE', P .. 'leases', ulid)
  elseif condition == 'timeout' then
    score = redis.call('ZSCORE', P .. 'timers', 't' .. ulid)
  elseif condition == 'deadline' then
    score = redis.call('ZSCORE', P .. 'timers', 'd' .. ulid)
  elseif condition == 'grace' then
    score = redis.call('ZSCORE', P .. 'timers', 'c' .. ulid)
  else
    return true
  end
  return score and tonumber(score) <= now
end

for at = 3, #ARGV, 10 do
  local ulid, worker, condition = ARGV[at], ARGV[at + 1], ARGV[at + 4]
  local key = P .. 'j:' .. ulid
  local job = redis.call('HMGET', key, 's', 't', 'w', 'v', 'n', 'a', 'rt', 'p', 'd', 'ex', 'oe', 'b', 'uk', 'kp')
  local state = tonumber(job[1])
  if not state then
    answer[#answer + 1] = { redis.call('EXISTS', P .. 'r:' .. ulid) == 1 and 2 or 1 }
  elseif job[2] ~= ARGV[at + 2] or job[3] ~= worker then
    -- Once the job is claimed again, the history alone knows who had it before, and what was recorded.
    answer[#answer + 1] = condition == 'worker' and recorded_end(P, ulid, ARGV[at + 2], worker) or { 2 }
  elseif state ~= RUNNING and state ~= CANCELLING then
    -- The holder ended this attempt already, so a repeated call gets the first answer; by the state that the job has come to where
    -- it succeeded, or where an entry of a former release tells no more.
    answer[#answer + 1] = condition == 'worker' and (recorded_end(P, ulid, ARGV[at + 2], worker)
      or { 0, state, state == SCHEDULED and tonumber(job[9]) or 0, 1 }) or { 2 }
  elseif state ~= tonumber(ARGV[at + 3]) then
    answer[#answer + 1] = { 3 }
  elseif not due(condition, ulid) then
    answer[#answer + 1] = { 2 }
  else
    local target, budget, outcome = tonumber(ARGV[at + 5]), ARGV[at + 6], ARGV[at + 8]
    local due_at = target == SCHEDULED and now + tonumber(ARGV[at + 7]) or 0
    local told = condition == 'worker' and ' ' .. target .. ' ' .. string.format('%d', due_at) or ''
    local ended = redis.call('RPUSH', P .. 'h:' .. ulid, job[5] .. ' ' .. job[2] .. ' ' .. job[6] .. ' ' .. now .. ' '
      .. outcome .. ' ' .. worker .. told .. '\n' .. ARGV[at + 9])
    if ended > HISTORY then redis.call('LTRIM', P .. 'h:' .. ulid, -HISTORY, -1) end
    if budget ~= '' then redis.call('HINCRBY', key, budget, 1) end
    -- An attempt that never reached its worker is not one: the next delivery gets its number.
    -- One that has written output was there: its number tags that output.
    local undone = outcome == UNDELIVERED and string.match(job[11] or '', '^%d+') ~= job[5]
    if undone then redis.call('HINCRBY', key, 'n', -1) end
    -- Only the holder's own ending leaves its name, which is what lets its repeated call be told from a zombie's.
    if condition ~= 'worker' then
      redis.call('HDEL', key, 'w')
      signals[#signals + 1] = ulid
    end
    redis.call('ZREM', P .. 'leases', ulid)
    redis.call('SREM', P .. 'held:' .. worker, ulid)
    redis.call('ZREM', P .. 'timers', 't' .. ulid, 'c' .. ulid)
    if state == CANCELLING then redis.call('SREM', P .. 'cancels:' .. worker, ulid) end
    if target == PENDING then
      redis.call('HSET', key, 's', PENDING, 'v', job[4] + 1, 'ps', now)
      push_ready(P, ulid, job[7], job[8], true)
      -- Back before its first attempt, so it may expire again.
      if job[10] and undone and job[5] == '1' then
        redis.call('ZADD', P .. 'timers', job[10], 'e' .. ulid)
      end
      woken[job[7]] = (woken[job[7]] or 0) + 1
    elseif target == SCHEDULED then
      redis.call('HSET', key, 's', SCHEDULED, 'v', job[4] + 1, 'd', due_at)
      redis.call('ZADD', P .. 'scheduled', due_at, ulid)
    else
      enter_terminal(P, ulid, target, job[4] + 1, now, retention, job[12], job[13], job[14])
    end
    if TOTALS[target] then total(TOTALS[target]) end
    if budget == 'c' then total('crashed') elseif budget == 'i' then total('released') end
    moved(ulid, state, target)
    answer[#answer + 1] = { 0, target, due_at }
  end
end

publish_tally(P)
local wake = {}
for route, count in pairs(woken) do wake[#wake + 1] = route .. ':' .. count end
if #wake > 0 then redis.pcall('SPUBLISH', P .. 'ready', table.concat(wake, ',')) end
if #signals > 0 then redis.pcall('SPUBLISH', P .. 'signals', table.concat(signals)) end
return answer

-- Cancels one job: SCHEDULED or PENDING -> CANCELLED, RUNNING -> CANCELLING; CANCELLING and CANCELLED stay as they are. With `only`, a text
-- of digits, only out of those states. The channel signals is told the ULIDs of jobs whose worker should hear of it, end to end.
local cancelled_signals, told_workers, told = {}, {}, {}

-- Grace of a running job and retention are in ms. Returns code and state as cancel.lua does.
local function cancel_job(prefix, ulid, reason, only, now, grace, retention)
  local SCHEDULED, PENDING, RUNNING, CANCELLING, CANCELLED = 1, 2, 3, 4, 7
  local key = prefix .. 'j:' .. ulid
  local job = redis.call('HMGET', key, 's', 'v', 'b', 'uk', 'kp', 'w')
  local state = tonumber(job[1] or PENDING)
  if redis.call('EXISTS', prefix .. 'r:' .. ulid) == 0 then return { 1 } end
  if only ~= '' and not string.find(only, state, 1, true) then return { 3, state } end
  if state == SCHEDULED or state == PENDING then
    -- A PENDING job's entry on its route goes stale; the next claim that meets it drops it.
    if state == SCHEDULED then redis.call('ZREM', prefix .. 'scheduled', ulid) end
    redis.call('HSET', key, 'ca', reason)
    enter_terminal(prefix, ulid, CANCELLED, (job[2] or 0) + 1, now, retention, job[3], job[4], job[5])
    moved(ulid, state, CANCELLED)
    total('cancelled')
    return { 0, CANCELLED }
  end
  if state == RUNNING then
    redis.call('HSET', key, 's', CANCELLING, 'v', job[2] + 1, 'ca', reason, 'cd', now + grace)
    redis.call('ZADD', prefix .. 'timers', now + grace, 'c' .. ulid)
    moved(ulid, RUNNING, CANCELLING)
    cancelled_signals[#cancelled_signals + 1] = ulid
    redis.call('SADD', prefix .. 'cancels:' .. job[6], ulid)
    if not told[job[6]] then
      told[job[6]] = true
      told_workers[#told_workers + 1] = job[6]
    end
    return { 0, CANCELLING }
  end
  return { (state == CANCELLING or state == CANCELLED) and 0 or 2, state }
end

local function publish_signals(prefix)
  if #cancelled_signals == 0 then return end
  redis.pcall('SPUBLISH', prefix .. 'signals', table.concat(cancelled_signals))
  redis.pcall('SPUBLISH', prefix .. 'cancels', table.concat(told_workers, ' '))
end

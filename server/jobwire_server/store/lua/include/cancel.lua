-- Cancels one job: SCHEDULED or PENDING -> CANCELLED, RUNNING -> CANCELLING; CANCELLING and CANCELLED stay as they are. With `only`, a text
-- of digits, only out of those states.
local read_cancelled = reader_of({ state = 's', revision = 'v', bytes = 'b', unique = 'uk', retention = 'kp', worker = 'w' })

-- Grace of a running job and retention are in ms. Returns code and state as cancel.lua does.
local function cancel_job(prefix, ulid, reason, only, now, grace, retention)
  local key = prefix .. 'j:' .. ulid
  local job = read_cancelled(key)
  local state = tonumber(job.state or PENDING)
  if redis.call('EXISTS', prefix .. 'r:' .. ulid) == 0 then return { NOT_FOUND } end
  if only ~= '' and not string.find(only, state, 1, true) then return { STATE_CHANGED, state } end
  if state == SCHEDULED or state == PENDING then
    redis.call('HSET', key, 'ca', reason)
    end_waiting(prefix, ulid, job, CANCELLED, now, retention)
    return { DONE, CANCELLED }
  end
  if state == RUNNING then
    redis.call('HSET', key, 's', CANCELLING, 'v', job.revision + 1, 'ca', reason, 'cd', now + grace)
    redis.call('ZADD', prefix .. 'timers', now + grace, 'c' .. ulid)
    moved(ulid, RUNNING, CANCELLING)
    signal_cancel(prefix, job.worker, ulid)
    return { DONE, CANCELLING }
  end
  return { (state == CANCELLING or state == CANCELLED) and DONE or WRONG_STATE, state }
end

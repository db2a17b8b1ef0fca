-- The ends of jobs other than SUCCEEDED.

-- Returns the bytes of a job's record: as its first claim noted them in field b, or else measured.
local function record_bytes(prefix, ulid, noted)
  return tonumber(noted) or redis.call('STRLEN', prefix .. 'r:' .. ulid)
end

-- Enters a terminal state: notes the end and when the job may be forgotten, counts, frees its unique key, and drops what only live
-- jobs need. `job` holds state and fields of its HASH: revision (v), bytes (b), unique (uk), retention (kp). `retention` is the
-- queue's, ms.
local function enter_terminal(prefix, ulid, job, target, now, retention)
  local purge_at = now + (job.retention or retention)
  redis.call('HSET', prefix .. 'j:' .. ulid, 's', target, 'v', (job.revision or 0) + 1, 'e', now, 'pg', purge_at)
  redis.call('ZADD', prefix .. 'done:' .. target, purge_at, ulid)
  redis.call('ZREM', prefix .. 'timers', 'e' .. ulid, 'd' .. ulid, 't' .. ulid, 'c' .. ulid)
  local size = record_bytes(prefix, ulid, job.bytes)
  weigh(-size, size)
  if job.unique then free_key(prefix, job.unique, ulid) end
  moved(ulid, tonumber(job.state or PENDING), target)
  tally.none_ends = false
  total(target == FAILED and 'failed' or target == CANCELLED and 'cancelled' or 'expired')
end

-- Ends a job that no worker holds. The entry of a PENDING one on its route goes stale; the next claim that meets it drops it.
local function end_waiting(prefix, ulid, job, target, now, retention)
  if tonumber(job.state or PENDING) == SCHEDULED then redis.call('ZREM', prefix .. 'scheduled', ulid) end
  enter_terminal(prefix, ulid, job, target, now, retention)
end

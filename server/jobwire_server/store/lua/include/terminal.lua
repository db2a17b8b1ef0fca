-- The bytes of a job's record: what its first claim noted in field b, or else measured.
local function record_bytes(prefix, ulid, noted)
  return tonumber(noted) or redis.call('STRLEN', prefix .. 'r:' .. ulid)
end

-- Enters a terminal state other than SUCCEEDED: notes the end and when the job may be forgotten, frees its unique key, and drops what
-- only live jobs need. The last three are fields b, uk and kp of the job's HASH (include/holder.lua); retention is the queue's, in ms.
local function enter_terminal(prefix, ulid, state, revision, now, retention, bytes, unique, retained)
  local purge_at = now + (retained or retention)
  redis.call('HSET', prefix .. 'j:' .. ulid, 's', state, 'v', revision, 'e', now, 'pg', purge_at)
  redis.call('ZADD', prefix .. 'done:' .. state, purge_at, ulid)
  redis.call('ZREM', prefix .. 'timers', 'e' .. ulid, 'd' .. ulid, 't' .. ulid, 'c' .. ulid)
  local size = record_bytes(prefix, ulid, bytes)
  weigh(-size, size)
  if unique then free_key(prefix, unique, ulid) end
end

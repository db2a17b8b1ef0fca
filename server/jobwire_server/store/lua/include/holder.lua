-- Unique keys: the STRING u:<name> -> scope, ULID of the job that holds it, and for scope 't' the end in Unix ms. Scopes: 'p' until
-- the job is first handed to a worker, 'u' until it ends, 't' until a moment. Whether an entry still holds is judged by the state of
-- its job whenever somebody asks, so none can be left locked. A job's field uk is its scope ('p' or 'u') and the name, end to end.

-- Returns nil if the key is free, or its holder: ulid, state (0 for one that is forgotten), started true or false.
local function key_holder(prefix, name, now)
  local entry = redis.call('GET', prefix .. 'u:' .. name)
  if not entry then return nil end
  local scope, ulid = string.sub(entry, 1, 1), string.sub(entry, 2, 27)
  if scope == 't' and tonumber(string.sub(entry, 28)) <= now then return nil end
  local job = redis.call('HMGET', prefix .. 'j:' .. ulid, 's', 'n')
  local state = tonumber(job[1]) or (redis.call('EXISTS', prefix .. 'r:' .. ulid) == 1 and 2 or 0)
  local started = (job[2] or '0') ~= '0'
  if scope == 'u' and (state == 0 or state >= 5) then return nil end
  if scope == 'p' and (state == 0 or state > 2 or started) then return nil end
  return { ulid = ulid, state = state, started = started }
end

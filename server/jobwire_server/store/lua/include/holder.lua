-- Unique keys: the STRING u:<name> -> scope, ULID of the job that holds it, and for scope 't' the end in Unix ms. Scopes: 'p' until
-- the job is first handed to a worker, 'u' until it ends, 't' until a moment. Whether an entry still holds is judged by the state of
-- its job whenever somebody asks, so no key can stay locked. A job's field uk is its scope ('p' or 'u') and the name, end to end.

-- Returns nil if the key is free, or its holder: ulid, state (FORGOTTEN if that is gone), started true or false.
local function key_holder(prefix, name, now)
  local entry = redis.call('GET', prefix .. 'u:' .. name)
  if not entry then return nil end
  local scope, ulid = string.sub(entry, 1, 1), string.sub(entry, 2, 27)
  if scope == 't' and tonumber(string.sub(entry, 28)) <= now then return nil end
  local noted, attempts = unpack(redis.call('HMGET', prefix .. 'j:' .. ulid, 's', 'n'))
  local state, started = state_of(prefix, ulid, noted), (attempts or '0') ~= '0'
  if scope == 'u' and (state == FORGOTTEN or state >= SUCCEEDED) then return nil end
  if scope == 'p' and (state == FORGOTTEN or state > PENDING or started) then return nil end
  return { ulid = ulid, state = state, started = started }
end

-- What was accepted before: known by its ulid for as long as the job exists, by its request id for 24 hours. A request's entry is the
-- STRING q:<request>: ulid that was answered, ulid that was proposed, digest of the content (32 characters), end in Unix ms, end to end.

local function known_state(prefix, ulid)
  return state_of(prefix, ulid, redis.call('HGET', prefix .. 'j:' .. ulid, 's'))
end

-- Returns the first answer to the request, nil if it is new. `item` holds q, d and j as submit.lua's extra does.
local function answered_before(prefix, item, ulid, now)
  local entry = redis.call('GET', prefix .. 'q:' .. item.q)
  if not entry or tonumber(string.sub(entry, 85)) <= now then return nil end
  local answered, proposed = string.sub(entry, 1, 26), string.sub(entry, 27, 52)
  local agrees = not item.j or ulid == answered or ulid == proposed
  if string.sub(entry, 53, 84) ~= item.d or not agrees then return { REQUEST_ID_REUSED } end
  return { SAME_REQUEST, known_state(prefix, answered), answered }
end

-- Returns the answer to a submission that was accepted before, nil if it was not.
local function known_as(prefix, item, ulid, now)
  local answer = item and item.q and answered_before(prefix, item, ulid, now)
  if answer then return answer end
  local record = redis.call('GET', prefix .. 'r:' .. ulid)
  return record and { SAME_ID, known_state(prefix, ulid), record } or nil
end

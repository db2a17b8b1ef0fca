-- Who was accepted before: by its ulid for as long as the job is there, by its request id for 24 hours. A request's entry is the STRING
-- q:<request>: ulid that was answered, ulid that was proposed, digest of the content (32 characters), end in Unix ms, end to end.

local function state_of(prefix, ulid)
  local state = tonumber(redis.call('HGET', prefix .. 'j:' .. ulid, 's'))
  return state or (redis.call('EXISTS', prefix .. 'r:' .. ulid) == 1 and 2 or 0)
end

-- What was answered to the request before; nil if it is new. `item` holds q, d and j as submit.lua's extra does.
local function answered_before(prefix, item, ulid, now)
  local entry = redis.call('GET', prefix .. 'q:' .. item.q)
  if not entry or tonumber(string.sub(entry, 85)) <= now then return nil end
  local answered, proposed = string.sub(entry, 1, 26), string.sub(entry, 27, 52)
  local agrees = not item.j or ulid == answered or ulid == proposed
  if string.sub(entry, 53, 84) ~= item.d or not agrees then return { 2 } end
  return { 1, state_of(prefix, answered), answered }
end

-- What a submission is answered that was accepted before; nil if it was not.
local function known_as(prefix, item, ulid, now)
  local answer = item and item.q and answered_before(prefix, item, ulid, now)
  if answer then return answer end
  local record = redis.call('GET', prefix .. 'r:' .. ulid)
  return record and { 0, state_of(prefix, ulid), record } or nil
end

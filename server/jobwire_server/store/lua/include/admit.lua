-- Decides about one job by itself: where its id, its request id or its unique key may be known, or the queue is nearly full.
local REFUSE, REPLACE = 2, 3
local REQUEST_MS = 86400000

local function remember_request(prefix, item, answered, ulid, now)
  local entry = answered .. ulid .. item.d .. string.format('%d', now + REQUEST_MS)
  redis.call('SET', prefix .. 'q:' .. item.q, entry, 'PX', REQUEST_MS)
end

-- Cancels a job that never started, in favour of another.
local function replace(prefix, holder, ulid, now, retention)
  local key = prefix .. 'j:' .. holder.ulid
  local revision, bytes, unique, own_retention = unpack(redis.call('HMGET', key, 'v', 'b', 'uk', 'kp'))
  local job = { state = holder.state, revision = revision, bytes = bytes, unique = unique, retention = own_retention }
  redis.call('HSET', key, 'ca', 'replaced by ' .. string.match(prefix, '{(.*)}') .. '-' .. ulid)
  end_waiting(prefix, holder.ulid, job, CANCELLED, now, retention)
end

-- Returns nil if the job's record is written now, or what is answered instead. `item` holds what submit.lua's extra does; retention of
-- a job that is replaced is in ms.
local function admit(prefix, ulid, record, item, now, retention)
  local known = known_as(prefix, item, ulid, now)
  if known then return known end
  local holder = item and item.u and key_holder(prefix, string.sub(item.u, 2), now)
  local replaced
  if holder then
    local waits = holder.state == SCHEDULED or holder.state == PENDING
    if item.c == REPLACE and holder.state ~= FORGOTTEN and not holder.started then
      replaced = waits and holder or nil
    elseif item.c == REPLACE or item.c == REFUSE then
      return { KEY_TAKEN, holder.state, holder.ulid }
    else
      if item.q then remember_request(prefix, item, holder.ulid, ulid, now) end
      return { KEY_HOLDER, holder.state, holder.ulid }
    end
  end
  local full = count_in(prefix, record, replaced)
  if full then return full end
  redis.call('SET', prefix .. 'r:' .. ulid, record)
  if replaced then replace(prefix, replaced, ulid, now, retention) end
  if item and item.u then take_key(prefix, item.u, ulid, now, item.t) end
  if item and item.q then remember_request(prefix, item, ulid, ulid, now) end
  return nil
end

-- Ready jobs: priority 0 in the LIST l:<route>, above 0 in the ZSET z:<route> scored 255 - priority, so
-- that the lowest score is delivered first. The HASH ready counts the entries of each route, stale ones included.
-- The channel ready wakes the servers whose workers wait: <route>:<count>, by commas.

-- A job that comes back is nearly always older than all that wait; a bounded look settles the rest.
local RETURN_LOOK = 64
local woken = {}

-- Notes jobs that became ready, for publish_ready.
local function wake(route, count)
  woken[route] = (woken[route] or 0) + count
end

local function publish_ready(prefix)
  local routes = {}
  for route, count in pairs(woken) do routes[#routes + 1] = route .. ':' .. count end
  if #routes > 0 then redis.pcall('SPUBLISH', prefix .. 'ready', table.concat(routes, ',')) end
end

-- Returns 1, or 0 if the job is there already: a job claimed by id left its entry behind.
local function insert_by_age(key, ulid)
  local at = 0
  local head = redis.call('LINDEX', key, at)
  while head and head < ulid and at < RETURN_LOOK do
    at = at + 1
    head = redis.call('LINDEX', key, at)
  end
  if head == ulid then return 0 end
  if not head then
    redis.call('RPUSH', key, ulid)
  elseif at == 0 then
    redis.call('LPUSH', key, ulid)
  else
    redis.call('LINSERT', key, 'BEFORE', head, ulid)
  end
  return 1
end

-- Puts one job where claims find it, at the end or, with by_age, where its age puts it; and notes the wake-up.
local function push_ready(prefix, ulid, route, priority, by_age)
  priority = tonumber(priority) or 0
  local added = 1
  if priority > 0 then
    added = redis.call('ZADD', prefix .. 'z:' .. route, 255 - priority, ulid)
  elseif by_age then
    added = insert_by_age(prefix .. 'l:' .. route, ulid)
  else
    redis.call('RPUSH', prefix .. 'l:' .. route, ulid)
  end
  if added > 0 then
    redis.call('HINCRBY', prefix .. 'ready', route, added)
  end
  wake(route, 1)
end

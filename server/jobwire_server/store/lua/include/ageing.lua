-- Priority ageing: a job counts as one priority higher for each `ageing` ms that it has been ready. Nothing is moved for it: jobs stay
-- in the LIST l:<route> (priority 0) and at the level of their priority in the ZSET z:<route>, and a claim compares the fronts of
-- the levels by what they count as now. Within one such priority the oldest id goes first. A job is ready since field ps of its
-- HASH j:<ulid>, or else since the moment in its id.

-- How far a claim looks into each level. A level is in the order of ids, so its front has nearly always waited longest; jobs that came
-- back after a backoff stand before others that have waited longer, and the look behind them settles that.
local LOOK = 8
-- The entries of a level that are read at once.
local PAGE = 32

-- Filled at its first use; most calls have none.
local digit_values

-- The moment in an id, Unix ms.
local function moment_of(ulid)
  if not digit_values then
    digit_values = {}
    for value = 0, 31 do digit_values[string.byte('0123456789abcdefghjkmnpqrstvwxyz', value + 1)] = value end
  end
  local ms = 0
  for i = 1, 10 do ms = ms * 32 + (digit_values[string.byte(ulid, i)] or 0) end
  return ms
end

-- The levels of a route that have entries: one for each priority that occurs.
local function levels_of(prefix, route)
  local levels, zset, from = {}, prefix .. 'z:' .. route, '-inf'
  while true do
    local head = redis.call('ZRANGE', zset, from, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    if not head[1] then break end
    levels[#levels + 1] = { key = zset, route = route, priority = 255 - head[2], score = head[2] }
    from = '(' .. head[2]
  end
  levels[#levels + 1] = { key = prefix .. 'l:' .. route, route = route, priority = 0 }
  for _, level in ipairs(levels) do
    level.page, level.next, level.read, level.taken, level.front = {}, 1, 0, {}, {}
  end
  return levels
end

-- The next entry of a level, or nil.
local function next_entry(level)
  if level.next > #level.page then
    if level.score then
      level.page = redis.call('ZRANGE', level.key, level.score, level.score, 'BYSCORE', 'LIMIT', level.read, PAGE)
    else
      level.page = redis.call('LRANGE', level.key, level.read, level.read + PAGE - 1)
    end
    level.read, level.next = level.read + #level.page, 1
  end
  level.next = level.next + 1
  return level.page[level.next - 1]
end

-- True if the first goes before the second.
local function goes_before(counts_as, ulid, other)
  return not other or counts_as > other.counts_as or (counts_as == other.counts_as and ulid < other.ulid)
end

-- Fills up the front of a level and finds the entry in it that goes first.
local function look_at(prefix, level, now, ageing)
  local front = level.front
  while #front < LOOK do
    local ulid = next_entry(level)
    if not ulid then break end
    local since = tonumber(redis.call('HGET', prefix .. 'j:' .. ulid, 'ps') or moment_of(ulid))
    -- The moment in an id that a producer made may be ahead of the store's clock.
    local waited = math.max(0, now - since)
    front[#front + 1] = { ulid = ulid, counts_as = level.priority + math.floor(waited / ageing) }
  end
  level.best = nil
  for i, entry in ipairs(front) do
    if goes_before(entry.counts_as, entry.ulid, level.best) then level.best, level.best_at = entry, i end
  end
end

-- Takes up to `need` entries off the routes, in the order in which they are to be delivered. Calls add(ulid, route, priority) for each.
-- Returns the levels; level.taken are the ids that were taken off each.
local function take_aged(prefix, routes, need, now, ageing, add)
  local levels = {}
  for _, route in ipairs(routes) do
    for _, level in ipairs(levels_of(prefix, route)) do
      look_at(prefix, level, now, ageing)
      levels[#levels + 1] = level
    end
  end
  for _ = 1, need do
    local first
    for _, level in ipairs(levels) do
      local best = level.best
      if best and goes_before(best.counts_as, best.ulid, first and first.best) then first = level end
    end
    if not first then break end
    add(first.best.ulid, first.route, first.priority)
    first.taken[#first.taken + 1] = first.best.ulid
    table.remove(first.front, first.best_at)
    look_at(prefix, first, now, ageing)
  end
  for _, level in ipairs(levels) do
    for _, ulid in ipairs(level.taken) do
      if level.score then redis.call('ZREM', level.key, ulid) else redis.call('LREM', level.key, 1, ulid) end
    end
  end
  return levels
end

-- Takes entries off the routes for a claim: highest priority first, then the oldest id over all the routes of a request; where
-- priorities age, by what they count as now (include/ageing.lua). The HASH ready is read once and written once for all of a call.

-- Route -> entries left on it, and entries taken off it (below 0: put back).
local left, popped = {}, {}

-- Reads how many entries there are on all the routes of a call.
local function count_entries(prefix, sets)
  local asked = {}
  for _, routes in ipairs(sets) do
    for _, route in ipairs(routes) do
      if not left[route] then
        left[route] = 0
        asked[#asked + 1] = route
      end
    end
  end
  for from = 1, #asked, SLICE do
    local slice = { unpack(asked, from, math.min(from + SLICE - 1, #asked)) }
    local sizes = redis.call('HMGET', prefix .. 'ready', unpack(slice))
    for i, route in ipairs(slice) do left[route] = tonumber(sizes[i] or 0) end
  end
end

local function took(route, count)
  left[route] = left[route] - count
  popped[route] = (popped[route] or 0) + count
end

-- Notes that a route is dry; a count that says otherwise would make every claim look again.
local function ran_dry(route)
  popped[route] = (popped[route] or 0) + left[route]
  left[route] = 0
end

local function write_counts(prefix)
  for route, count in pairs(popped) do
    if count ~= 0 and redis.call('HINCRBY', prefix .. 'ready', route, -count) <= 0 then
      redis.call('HDEL', prefix .. 'ready', route)
    end
  end
end

-- Entries come as three lists side by side, because a table for each would cost as much as its commands.
local function entry_lists() return { ulids = {}, routes = {}, priorities = {} } end

local function add_entry(into, ulid, route, priority)
  local n = #into.ulids + 1
  into.ulids[n], into.routes[n], into.priorities[n] = ulid, route, priority
end

-- Takes up to `need` entries off one route.
local function pop_route(prefix, route, need, into)
  local high = redis.call('ZPOPMIN', prefix .. 'z:' .. route, need)
  for i = 1, #high, 2 do add_entry(into, high[i], route, text_of(255 - high[i + 1])) end
  local rest = need - #high / 2
  local low = rest > 0 and redis.call('LPOP', prefix .. 'l:' .. route, rest) or {}
  for _, ulid in ipairs(low) do add_entry(into, ulid, route, '0') end
  local count = #high / 2 + #low
  took(route, count)
  if count < need then ran_dry(route) end
end

-- Returns the first `need` entries of a route without taking them.
local function head_of(prefix, route, need)
  local head = entry_lists()
  local high = redis.call('ZRANGE', prefix .. 'z:' .. route, 0, need - 1, 'WITHSCORES')
  for i = 1, #high, 2 do add_entry(head, high[i], route, 255 - high[i + 1]) end
  head.high, head.next = #head.ulids, 1
  if head.high < need then
    for _, ulid in ipairs(redis.call('LRANGE', prefix .. 'l:' .. route, 0, need - head.high - 1)) do
      add_entry(head, ulid, route, 0)
    end
  end
  return head
end

-- Takes up to `need` entries off several routes, best first: looks at the heads, merges, then pops what it chose.
local function pop_routes(prefix, routes, need, into)
  local heads = {}
  for r, route in ipairs(routes) do heads[r] = head_of(prefix, route, need) end
  for _ = 1, need do
    local best, ulid, priority
    for _, head in ipairs(heads) do
      local candidate = head.ulids[head.next]
      if candidate then
        local its = head.priorities[head.next]
        if not best or its > priority or (its == priority and candidate < ulid) then
          best, ulid, priority = head, candidate, its
        end
      end
    end
    if not best then break end
    add_entry(into, ulid, best.routes[best.next], text_of(priority))
    best.next = best.next + 1
  end
  for r, head in ipairs(heads) do
    local route, count = routes[r], head.next - 1
    local high = math.min(count, head.high)
    if high > 0 then redis.call('ZPOPMIN', prefix .. 'z:' .. route, high) end
    if count > high then redis.call('LPOP', prefix .. 'l:' .. route, count - high) end
    took(route, count)
    if #head.ulids == 0 then ran_dry(route) end
  end
end

-- The same over any number of routes where priorities age.
local function pop_aged(prefix, routes, need, into, now, ageing)
  local levels = take_aged(prefix, routes, need, now, ageing, function(ulid, route, priority)
    add_entry(into, ulid, route, text_of(priority))
  end)
  local more = {}
  for _, level in ipairs(levels) do
    took(level.route, #level.taken)
    if level.best then more[level.route] = true end
  end
  for _, route in ipairs(routes) do
    if not more[route] then ran_dry(route) end
  end
end

-- Returns those of the routes that have entries.
local function live_routes(routes)
  local live = {}
  for _, route in ipairs(routes) do
    if left[route] > 0 then live[#live + 1] = route end
  end
  return live
end

-- Takes up to `need` entries off live routes. Returns them in the order of delivery.
local function pop_entries(prefix, routes, need, now, ageing)
  local entries = entry_lists()
  if ageing then
    pop_aged(prefix, routes, need, entries, now, ageing)
  elseif #routes == 1 then
    pop_route(prefix, routes[1], need, entries)
  else
    pop_routes(prefix, routes, need, entries)
  end
  return entries
end

-- Returns entries from index `first` on to where they were taken from, the last one first, so that each stands where it stood.
local function put_back(prefix, entries, first)
  for i = #entries.ulids, first, -1 do
    local ulid, route, priority = entries.ulids[i], entries.routes[i], entries.priorities[i]
    if priority == '0' then
      redis.call('LPUSH', prefix .. 'l:' .. route, ulid)
    else
      redis.call('ZADD', prefix .. 'z:' .. route, 255 - priority, ulid)
    end
    took(route, -1)
  end
end

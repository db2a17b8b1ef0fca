#!lua flags=no-writes
-- list.lua: the ids of one page of a queue's jobs in one state.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: j:<ulid> scheduled leases l:<route> z:<route> ready done:<state> (end_attempt.lua)
-- ARGV[1] state
-- ARGV[2] the most ids to look at
-- ARGV[3] source to go on in ('' from the start): for PENDING 'z:<route>' or 'l:<route>', otherwise 'z'
-- ARGV[4] last id seen there ('' none)   ARGV[5] its mark: a score, for a LIST its index, '' where the id is enough
-- ARGV[6] 1: the other way round, from the end   0: from the beginning
-- Returns {source, last, mark, then the ids}: where to go on; source '' after the last page
--   Ids of stale entries are among them; the reader compares the state.
--constants states

local P = KEYS[1]
local state, most, source, last, mark = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local reverse = ARGV[6] == '1'
local KEY = { [SCHEDULED] = 'scheduled' }

-- Whether one id is listed before another.
local function goes_before(one, other)
  if reverse then return one > other end
  return one < other
end

-- From a ZSET, in the order of (score, id), which is the order of the set itself. The last id may be gone; of thousands with one score
-- its place is found by halves.
local function from_zset(key)
  -- How many entries come before the place, counted from the beginning.
  local place = reverse and redis.call('ZCARD', key) or 0
  if last ~= '' then
    place = redis.call('ZCOUNT', key, '-inf', '(' .. mark)
    local behind = redis.call('ZCOUNT', key, '-inf', mark)
    while place < behind do
      local middle = math.floor((place + behind) / 2)
      local id = redis.call('ZRANGE', key, middle, middle)[1]
      if id > last or (reverse and id == last) then behind = middle else place = middle + 1 end
    end
  end
  local first, stop = place, place + most - 1
  if reverse then first, stop = math.max(0, place - most), place - 1 end
  local page = stop >= first and redis.call('ZRANGE', key, first, stop, 'WITHSCORES') or {}
  local ids, mark_of_last = {}, ''
  for i = 1, #page, 2 do
    local at = reverse and #page - i or i
    ids[#ids + 1] = page[at]
    mark_of_last = page[at + 1]
  end
  if #ids == most then return ids, ids[#ids], mark_of_last end
  return ids
end

-- Jobs with a lease, by id: renewals move them about in the order of lease ends, so that a listing in that order
-- would meet the same jobs again and again. Goes through all of them, which are as many as workers run at once, for the next few
-- hundred ids, and looks at the states of those alone.
local LOOK_AT = 500

local function from_leases()
  local found, from, window = {}, 0, math.max(most, LOOK_AT)
  while true do
    local part = redis.call('ZRANGE', P .. 'leases', from, from + 4999)
    for _, ulid in ipairs(part) do
      if (last == '' or goes_before(last, ulid)) and (#found < window or goes_before(ulid, found[window])) then
        local low, high = 1, #found + 1
        while low < high do
          local middle = math.floor((low + high) / 2)
          if goes_before(found[middle], ulid) then low = middle + 1 else high = middle end
        end
        table.insert(found, low, ulid)
        found[window + 1] = nil
      end
    end
    if #part < 5000 then break end
    from = from + 5000
  end
  local ids = {}
  for _, ulid in ipairs(found) do
    if tonumber(redis.call('HGET', P .. 'j:' .. ulid, 's')) == state then
      ids[#ids + 1] = ulid
      if #ids == most then return ids, ulid, '' end
    end
  end
  if #found == window then return ids, found[window], '' end
  return ids
end

-- From a LIST: claims shorten it at the front, so the last id stands at its index or before it, or it and all before it are gone. A job
-- that was redriven may stand twice: its last index up to the index counts, or a listing would come back to where it was for ever.
local function from_list(key)
  local start = 0
  if last ~= '' then
    local indexes = redis.call('LPOS', key, last, 'COUNT', 0, 'MAXLEN', tonumber(mark) + 1)
    local found = indexes[#indexes] or redis.call('LPOS', key, last)
    start = found and found + 1 or 0
  end
  local ids = redis.call('LRANGE', key, start, start + most - 1)
  if #ids == most then return ids, ids[#ids], tostring(start + most - 1) end
  return ids
end

-- The same from the end: what stands before the last id has become no more. Where it is gone, all before it went to the front and
-- away. Of a job that stands twice, it is the last place up to the mark, unless others were put back in front of it.
local function from_list_end(key)
  local stop = redis.call('LLEN', key) - 1
  if last ~= '' then
    local found = redis.call('LPOS', key, last, 'RANK', -1)
    if found and found > tonumber(mark) then
      local indexes = redis.call('LPOS', key, last, 'COUNT', 0, 'MAXLEN', tonumber(mark) + 1)
      found = indexes[#indexes] or found
    end
    stop = found and found - 1 or -1
  end
  local ids = {}
  local part = stop >= 0 and redis.call('LRANGE', key, math.max(0, stop - most + 1), stop) or {}
  for i = #part, 1, -1 do ids[#ids + 1] = part[i] end
  if #ids == most then return ids, ids[#ids], tostring(stop - most + 1) end
  return ids
end

if state ~= PENDING then
  local ids, at, score
  if state == RUNNING or state == CANCELLING then
    ids, at, score = from_leases()
  else
    ids, at, score = from_zset(P .. (KEY[state] or 'done:' .. state))
  end
  return { at and 'z' or '', at or '', score or '', unpack(ids) }
end

-- The sources of PENDING: above priority 0 first, then the lists, each by route.
local sources = {}
local routes = redis.call('HKEYS', P .. 'ready')
table.sort(routes)
for _, kind in ipairs({ 'z:', 'l:' }) do
  for _, route in ipairs(routes) do sources[#sources + 1] = kind .. route end
end
if reverse then
  for i = 1, math.floor(#sources / 2) do sources[i], sources[#sources + 1 - i] = sources[#sources + 1 - i], sources[i] end
end
-- A source that has run dry since the last page is gone; the next one in order is as good. 'z:' comes before 'l:'.
local function rank(name) return (string.sub(name, 1, 1) == 'z' and '0' or '1') .. name end
for i, name in ipairs(sources) do
  if source == '' or not goes_before(rank(name), rank(source)) then
    if name ~= source then last, mark = '', '' end
    local read = string.sub(name, 1, 1) == 'z' and from_zset or reverse and from_list_end or from_list
    local ids, at, score = read(P .. name)
    if at then return { name, at, score, unpack(ids) } end
    if #ids > 0 then
      local following = sources[i + 1]
      return { following or '', '', '', unpack(ids) }
    end
  end
end
return { '', '', '' }

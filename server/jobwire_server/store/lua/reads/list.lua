#!lua flags=no-writes
-- list.lua: the ids of one page of a queue's jobs in one state.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: j:<ulid> scheduled leases l:<route> z:<route> ready done:<state> (end_attempt.lua)
-- ARGV[1] state
-- ARGV[2] the most ids to look at
-- ARGV[3] source to go on in ('' from the start): for PENDING 'z:<route>' or 'l:<route>', otherwise 'z'
-- ARGV[4] last id seen there ('' none)   ARGV[5] its mark: a score, for a LIST its index, '' where the id is enough
-- Returns {source, last, mark, then the ids}: where to go on; source '' after the last page
--   Ids of stale entries are among them; the reader compares the state.
--constants states

local P = KEYS[1]
local state, most, source, last, mark = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local KEY = { [SCHEDULED] = 'scheduled' }

-- From a ZSET, in the order of (score, id), which is the order of the set itself. The last id may be gone; of thousands with one score
-- its place is found by halves.
local function from_zset(key)
  local start = 0
  if last ~= '' then
    start = redis.call('ZCOUNT', key, '-inf', '(' .. mark)
    local behind = redis.call('ZCOUNT', key, '-inf', mark)
    while start < behind do
      local middle = math.floor((start + behind) / 2)
      if redis.call('ZRANGE', key, middle, middle)[1] > last then behind = middle else start = middle + 1 end
    end
  end
  local page = redis.call('ZRANGE', key, start, start + most - 1, 'WITHSCORES')
  local ids = {}
  for i = 1, #page, 2 do ids[#ids + 1] = page[i] end
  if #ids == most then return ids, page[#page - 1], page[#page] end
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
      if ulid > last and (#found < window or ulid < found[window]) then
        local low, high = 1, #found + 1
        while low < high do
          local middle = math.floor((low + high) / 2)
          if found[middle] < ulid then low = middle + 1 else high = middle end
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
-- A source that has run dry since the last page is gone; the next one in order is as good. 'z:' comes before 'l:'.
local function rank(name) return (string.sub(name, 1, 1) == 'z' and '0' or '1') .. name end
for i, name in ipairs(sources) do
  if source == '' or rank(name) >= rank(source) then
    if name ~= source then last, mark = '', '' end
    local read = string.sub(name, 1, 1) == 'z' and from_zset or from_list
    local ids, at, score = read(P .. name)
    if at then return { name, at, score, unpack(ids) } end
    if #ids > 0 then
      local following = sources[i + 1]
      return { following or '', '', '', unpack(ids) }
    end
  end
end
return { '', '', '' }

#!lua
-- submit.lua: - -> PENDING or SCHEDULED for each job whose id is new. A full store refuses the whole batch before its first write.
-- KEYS[1] jw:{<queue>}:            prefix of every key of the queue:
--           r:<ulid>       STRING  the record, as it is handed to workers
--           j:<ulid>       HASH    the changing part; absent for a job that is PENDING, never claimed and all default
--           l:<route> z:<route>    ready jobs (include/ready.lua)
--           ready          HASH    route -> entries
--           routes         HASH    route -> descriptor
--           scheduled      ZSET    ulid -> due, Unix ms
--           timers         ZSET    'e' .. ulid -> expiry, 'd' .. ulid -> deadline, Unix ms
--           counts totals  HASH    (include/tally.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] number of distinct routes, then for each: route, descriptor
-- then for each job six: ulid, route, priority 0..255,
--   start ('' at once, '<ms>' not before that Unix ms, '+<ms>' not before so many ms from now),
--   extra ('' or a JSON list of alternating HASH fields and values), record
-- Returns {now in Unix ms, then for each job its state, or {state, record} of the job that had its id before}
--include clock ready tally chunks

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local route_count = tonumber(ARGV[2])
local first = 3 + 2 * route_count
local answer = { now }
local SCHEDULED, PENDING = 1, 2

local function existing(ulid)
  local record = redis.call('GET', P .. 'r:' .. ulid)
  return { tonumber(redis.call('HGET', P .. 'j:' .. ulid, 's') or PENDING), record }
end

-- One write for the records of the whole batch. It fails only if an id is there already, after a lost answer; then each
-- job is looked at by itself. An id that is twice in the batch is written once: MSETNX would take the last of them.
local pairs_to_set, seen, again, size = {}, {}, {}, 0
for at = first, #ARGV, 6 do
  local ulid = ARGV[at]
  if seen[ulid] then
    again[at] = true
  else
    seen[ulid] = true
    pairs_to_set[size + 1], pairs_to_set[size + 2] = P .. 'r:' .. ulid, ARGV[at + 5]
    size = size + 2
  end
end
local all_new = redis.call('MSETNX', unpack(pairs_to_set)) == 1

local function start_ms(start)
  if start == '' then return 0 end
  if string.sub(start, 1, 1) == '+' then return now + tonumber(string.sub(start, 2)) end
  return tonumber(start)
end

local lists, ready_by_route = {}, {}
local pending, scheduled = 0, 0
local changed = tally.changed

-- Puts a job of priority 0 on the list of its route; the lists are written at the end.
local function enlist(route, ulid)
  local list = lists[route]
  if not list then
    list = {}
    lists[route] = list
  end
  list[#list + 1] = ulid
  pending = pending + 1
end

for at = first, #ARGV, 6 do
  local ulid, route, priority, extra = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 4]
  if again[at] or (not all_new and redis.call('SETNX', P .. 'r:' .. ulid, ARGV[at + 5]) == 0) then
    answer[#answer + 1] = existing(ulid)
  elseif extra == '' and priority == '0' and ARGV[at + 3] == '' then
    enlist(route, ulid)
    answer[#answer + 1] = PENDING
    changed[#changed + 1] = ulid
  else
    local due = start_ms(ARGV[at + 3])
    local fields = extra == '' and {} or cjson.decode(extra)
    for i = 1, #fields, 2 do
      if fields[i] == 'ex' then
        redis.call('ZADD', P .. 'timers', fields[i + 1], 'e' .. ulid)
      elseif fields[i] == 'dl' then
        redis.call('ZADD', P .. 'timers', fields[i + 1], 'd' .. ulid)
      end
    end
    if due > now then
      redis.call('HSET', P .. 'j:' .. ulid, 's', SCHEDULED, 'd', due, 'rt', route, 'p', priority, unpack(fields))
      redis.call('ZADD', P .. 'scheduled', due, ulid)
      scheduled = scheduled + 1
      answer[#answer + 1] = SCHEDULED
    else
      if extra ~= '' then
        redis.call('HSET', P .. 'j:' .. ulid, 's', PENDING, unpack(fields))
      end
      if priority == '0' then
        enlist(route, ulid)
      else
        push_ready(P, ulid, route, priority, false)
        ready_by_route[route] = (ready_by_route[route] or 0) + 1
        pending = pending + 1
      end
      answer[#answer + 1] = PENDING
    end
    changed[#changed + 1] = ulid
  end
end

for route, list in pairs(lists) do
  each_slice('RPUSH', P .. 'l:' .. route, list)
  redis.call('HINCRBY', P .. 'ready', route, #list)
  ready_by_route[route] = (ready_by_route[route] or 0) + #list
end
if pending + scheduled > 0 then
  for at = 3, first - 1, 2 do
    redis.call('HSETNX', P .. 'routes', ARGV[at], ARGV[at + 1])
  end
  tally.counts[PENDING] = pending
  tally.counts[SCHEDULED] = scheduled
  total('submitted', pending + scheduled)
  publish_tally(P)
end
if pending > 0 then
  local wake = {}
  for route, count in pairs(ready_by_route) do
    wake[#wake + 1] = route .. ':' .. count
  end
  redis.call('SPUBLISH', P .. 'ready', table.concat(wake, ','))
end
return answer

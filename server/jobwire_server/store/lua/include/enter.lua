-- Puts new jobs into the queue. `items` holds six values for each from `first` on, as submit.lua's arguments do. Limits are 0 for none,
-- retention is in ms. Appends to `answer` what becomes of each, as submit.lua says. The caller
-- publishes the tally, and announces the jobs that became ready on the channel ready: <route>:<count>, by commas.
local REFUSE, REPLACE = 2, 3
local OBJECT = string.byte('{')
local NOTHING = {}
local REQUEST_MS = 86400000
local ready_by_route = {}

local function enter_jobs(P, now, answer, items, first, retention, max_waiting, max_live)
  local SCHEDULED, PENDING, CANCELLED = 1, 2, 7
  -- One write for the records of the whole batch. It fails only if an id is there already, after a lost answer; then each
  -- job is looked at by itself. An id that is twice in the batch is written once: MSETNX would take the last of them. Jobs whose
  -- request id or unique key decides about them are looked at in their turn.
  local pairs_to_set, seen, alone, size, bytes = {}, {}, {}, 0, 0
  for at = first, #items, 6 do
    local ulid, extra, record = items[at], items[at + 4], items[at + 5]
    bytes = bytes + #record
    if seen[ulid] or (extra ~= '' and string.byte(extra) == OBJECT) then
      alone[at] = true
    else
      pairs_to_set[size + 1], pairs_to_set[size + 2] = P .. 'r:' .. ulid, record
      size = size + 2
    end
    seen[ulid] = true
  end

  -- Where the whole batch fits below the limits, nobody asks again.
  local waiting, live, roomy = 0, 0, true
  if max_waiting > 0 or max_live > 0 then
    local counts = redis.call('HMGET', P .. 'counts', SCHEDULED, PENDING)
    waiting = (counts[1] or 0) + (counts[2] or 0) + (tally.counts[SCHEDULED] or 0) + (tally.counts[PENDING] or 0)
    live = (redis.call('HGET', P .. 'usage', 'live') or 0) + tally.live
    roomy = (max_waiting == 0 or waiting + (#items - first + 1) / 6 <= max_waiting)
      and (max_live == 0 or live + bytes <= max_live)
  end
  local all_new = roomy and size > 0 and redis.call('MSETNX', unpack(pairs_to_set)) == 1

  local function start_ms(start)
    if start == '' then return 0 end
    if string.sub(start, 1, 1) == '+' then return now + tonumber(string.sub(start, 2)) end
    return tonumber(start)
  end

  local lists = {}
  local pending, scheduled, written = 0, 0, 0
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

  local function remember_request(item, answered, ulid)
    local entry = answered .. ulid .. item.d .. string.format('%d', now + REQUEST_MS)
    redis.call('SET', P .. 'q:' .. item.q, entry, 'PX', REQUEST_MS)
  end

  -- Cancels a job that never started, in favour of another. Its entry on the route goes stale.
  local function replace(holder, ulid)
    local key = P .. 'j:' .. holder.ulid
    local job = redis.call('HMGET', key, 'v', 'b', 'uk', 'kp')
    if holder.state == SCHEDULED then redis.call('ZREM', P .. 'scheduled', holder.ulid) end
    redis.call('HSET', key, 'ca', 'replaced by ' .. string.match(P, '{(.*)}') .. '-' .. ulid)
    enter_terminal(P, holder.ulid, CANCELLED, (job[1] or 0) + 1, now, retention, job[2], job[3], job[4])
    moved(holder.ulid, holder.state, CANCELLED)
    total('cancelled')
  end

  -- Nil if the queue has room for a record besides what a replaced job leaves, or the refusal. Jobs count from here on.
  local function take_room(record, replaced)
    if roomy then return nil end
    local left = replaced and record_bytes(P, replaced.ulid) or 0
    local waiting_then, live_then = waiting + (replaced and 0 or 1), live + #record - left
    if max_waiting > 0 and waiting_then > max_waiting then return { 5, waiting } end
    if max_live > 0 and live_then > max_live then return { 6, live } end
    waiting, live = waiting_then, live_then
    return nil
  end

  -- Looks at one job by itself: nil if its record is written now, or what is answered instead.
  local function admit(ulid, record, item)
    local known = known_as(P, item, ulid, now)
    if known then return known end
    local holder = item and item.u and key_holder(P, string.sub(item.u, 2), now)
    local replaced
    if holder then
      local waits = holder.state == SCHEDULED or holder.state == PENDING
      if item.c == REPLACE and holder.state ~= 0 and not holder.started then
        replaced = waits and holder or nil
      elseif item.c == REPLACE or item.c == REFUSE then
        return { 4, holder.state, holder.ulid }
      else
        if item.q then remember_request(item, holder.ulid, ulid) end
        return { 3, holder.state, holder.ulid }
      end
    end
    local full = take_room(record, replaced)
    if full then return full end
    redis.call('SET', P .. 'r:' .. ulid, record)
    if replaced then replace(replaced, ulid) end
    if item and item.u then take_key(P, item.u, ulid, now, item.t) end
    if item and item.q then remember_request(item, ulid, ulid) end
    return nil
  end

  for at = first, #items, 6 do
    local ulid, route, priority, extra, record = items[at], items[at + 1], items[at + 2], items[at + 4], items[at + 5]
    local decoded = extra ~= '' and cjson.decode(extra) or NOTHING
    local other
    if alone[at] or not all_new then other = admit(ulid, record, decoded.f and decoded) end
    if other then
      answer[#answer + 1] = other
    elseif extra == '' and priority == '0' and items[at + 3] == '' then
      enlist(route, ulid)
      answer[#answer + 1] = PENDING
      changed[#changed + 1] = ulid
      written = written + #record
    else
      local due = start_ms(items[at + 3])
      local fields = decoded.f or decoded
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
        if #fields > 0 then
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
      written = written + #record
    end
  end

  for route, list in pairs(lists) do
    each_slice('RPUSH', P .. 'l:' .. route, list)
    redis.call('HINCRBY', P .. 'ready', route, #list)
    ready_by_route[route] = (ready_by_route[route] or 0) + #list
  end
  if pending + scheduled > 0 then
    -- Jobs that were replaced have been counted off.
    tally.counts[PENDING] = (tally.counts[PENDING] or 0) + pending
    tally.counts[SCHEDULED] = (tally.counts[SCHEDULED] or 0) + scheduled
    total('submitted', pending + scheduled)
    weigh(written, 0)
  end
end

local function announce_ready(P)
  local wake = {}
  for route, count in pairs(ready_by_route) do
    wake[#wake + 1] = route .. ':' .. count
  end
  if #wake > 0 then redis.pcall('SPUBLISH', P .. 'ready', table.concat(wake, ',')) end
end

-- Puts new jobs into the queue. `items` holds six values for each from `first` on, as submit.lua's arguments do. Limits are 0 for none,
-- retention is in ms. Appends to `answer` what becomes of each, as submit.lua says. The caller publishes the tally and the ready jobs.
local OBJECT = string.byte('{')
local NOTHING = {}

-- Writes the records of the whole batch in one command. That fails only if an id exists already, after a lost answer; then each job
-- is looked at by itself. An id that is twice in the batch is written once: MSETNX would take the last of them. Jobs whose
-- request id or unique key decides about them are looked at in their turn. Returns whether the records are written, and the
-- indexes of the items that are to be looked at all the same.
local function write_records(P, items, first, max_waiting, max_live)
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
  measure_load(P, (#items - first + 1) / 6, bytes, max_waiting, max_live)
  return all_fit and size > 0 and redis.call('MSETNX', unpack(pairs_to_set)) == 1, alone
end

-- Guards a job by the timers among its HASH fields.
local function set_timers(P, ulid, fields)
  for i = 1, #fields, 2 do
    if fields[i] == 'ex' then
      redis.call('ZADD', P .. 'timers', fields[i + 1], 'e' .. ulid)
    elseif fields[i] == 'dl' then
      redis.call('ZADD', P .. 'timers', fields[i + 1], 'd' .. ulid)
    end
  end
end

local function enter_jobs(P, now, answer, items, first, retention, max_waiting, max_live)
  local all_new, alone = write_records(P, items, first, max_waiting, max_live)
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

  for at = first, #items, 6 do
    local ulid, route, priority, extra, record = items[at], items[at + 1], items[at + 2], items[at + 4], items[at + 5]
    local decoded = extra ~= '' and cjson.decode(extra) or NOTHING
    local other
    if alone[at] or not all_new then other = admit(P, ulid, record, decoded.f and decoded, now, retention) end
    if other then
      answer[#answer + 1] = other
    elseif extra == '' and priority == '0' and items[at + 3] == '' then
      enlist(route, ulid)
      answer[#answer + 1] = PENDING
      changed[#changed + 1] = ulid
      written = written + #record
    else
      local due = start_ms(items[at + 3], now)
      local fields = decoded.f or decoded
      local given = string.match(priority, '^q(%d+)')
      if given then priority, fields = given, { 'p', given, unpack(fields) } end
      set_timers(P, ulid, fields)
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
    wake(route, #list)
  end
  if pending + scheduled > 0 then
    -- Jobs that were replaced have been counted off.
    tally.counts[PENDING] = (tally.counts[PENDING] or 0) + pending
    tally.counts[SCHEDULED] = (tally.counts[SCHEDULED] or 0) + scheduled
    total('submitted', pending + scheduled)
    weigh(written, 0)
  end
end

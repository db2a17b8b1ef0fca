#!lua flags=allow-oom
-- claim.lua: PENDING -> RUNNING for as many jobs as the requests ask for and their routes have.
-- Highest priority first, then the oldest id over all the routes of a request; where the queue lets priorities age, by what they
-- count as now. Jobs that were cancelled, expired, missed
-- their deadline or were claimed by id leave stale entries behind, which are dropped here.
-- KEYS[1] jw:{<queue>}:                    prefix of every key of the queue:
--           r:<ulid> j:<ulid> c:<ulid> l:<route> z:<route> ready timers counts totals (submit.lua)
--           leases                 ZSET    ulid -> end of the lease, Unix ms
--           held:<worker>          SET     ulids that the worker holds
--           config                 HASH    paused = 1; ageing -> the wait that counts as one priority, ms (include/ageing.lua)
--           done:6 done:8          ZSET    ulid -> when a job that missed its deadline, or expired, may be forgotten, Unix ms
--           claimed:<server>       STRING  the server's last answer that brought something, kept for 60 s
-- ARGV[1] clock shift, ms
-- ARGV[2] server id
-- ARGV[3] number of this call, unique within the server: a call that is repeated because its answer was lost gets that answer
-- ARGV[4] number of the last call that brought something and whose answer the server heard, 0 for none
-- ARGV[5] retention of jobs that turn out to be expired or past their deadline and have none of their own, ms
-- ARGV[6] number of route sets, then for each: the number of its routes, the routes
-- then for each request four: worker, most jobs, lease in ms, number of its route set from 1
-- Returns {now, paused 0|1, unheard, then for each request {more 0|1, then for each job ulid, fencing token, attempt, record}};
--   attempt: its number, or {number, checkpoint} for a job with a checkpoint
--   more = 1: stopped early at the bound on stale entries, or on bytes, ask again
--   unheard: three values for each job of an earlier call whose answer was lost for good: worker, ulid, fencing token
--include clock numbers ready tally chunks holder unique terminal ageing

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local now_text = text_of(now)
local changed = tally.changed
local answer_key = P .. 'claimed:' .. ARGV[2]
local call = ARGV[3]
local PENDING, RUNNING, FAILED, EXPIRED = 2, 3, 6, 8
-- The most stale entries that one call drops, so that no call holds up the store.
local STALE_BOUND = 2000
-- The most bytes of jobs that go to one request, and out of one call: an answer must pass what workers take as a message, and
-- no call may fill the store's memory with its answer. A first job may be larger.
local REQUEST_BYTES, CALL_BYTES = 2 * 1024 * 1024, 8 * 1024 * 1024
-- Records read in one go, before their sizes are known.
local RECORDS_AT_ONCE = 32
-- The most jobs of lost answers that are remembered; the others come back when their leases end.
local LOST_BOUND = 2000

local sets, requests = {}, {}
local at = 7
for s = 1, tonumber(ARGV[6]) do
  local size = tonumber(ARGV[at])
  local routes = {}
  for i = 1, size do routes[i] = ARGV[at + i] end
  sets[s] = routes
  at = at + size + 1
end
for from = at, #ARGV, 4 do
  requests[#requests + 1] = {
    worker = ARGV[from],
    most = tonumber(ARGV[from + 1]),
    lease = tonumber(ARGV[from + 2]),
    routes = sets[tonumber(ARGV[from + 3])],
  }
end

-- The calls whose answers were lost for good: start of the attempts, worker, ULIDs end to end, and so on. Either the server gave
-- a call up while the store stood still, or the call reached the store only after that.
local lost, lost_jobs = {}, 0

local function note_lost(started_at, worker, ulids)
  lost_jobs = lost_jobs + #ulids / 26
  if #ulids > 0 and lost_jobs <= LOST_BOUND then
    local n = #lost
    lost[n + 1], lost[n + 2], lost[n + 3] = started_at, worker, ulids
  end
end

-- The jobs of lost answers that are still leased by them.
local function unheard()
  local found = {}
  for i = 1, #lost, 3 do
    local started_at, worker, ulids = lost[i], lost[i + 1], lost[i + 2]
    for from = 1, #ulids, 26 do
      local ulid = string.sub(ulids, from, from + 25)
      local job = redis.call('HMGET', P .. 'j:' .. ulid, 't', 'w', 'a')
      if job[2] == worker and job[3] == started_at then
        local n = #found
        found[n + 1], found[n + 2], found[n + 3] = worker, ulid, job[1]
      end
    end
  end
  if #found == 0 then lost = {} end
  return found
end

local function remember(saved, workers)
  redis.call('SET', answer_key, cmsgpack.pack({ call, saved, workers, now_text, lost }), 'PX', 60000)
end

-- The number of an attempt as it is answered.
local function told(ulid, attempt, has_checkpoint)
  return has_checkpoint and { attempt, redis.call('GET', P .. 'c:' .. ulid) or '' } or attempt
end

local last = redis.call('GET', answer_key)
if last then
  last = cmsgpack.unpack(last)
  if last[1] ~= ARGV[4] then
    if last[1] ~= call then
      for r, ulids in ipairs(last[2]) do note_lost(last[4], last[3][r], ulids) end
    end
    for i = 1, #last[5], 3 do note_lost(last[5][i], last[5][i + 1], last[5][i + 2]) end
  end
  if last[1] == call then
    local answer = { now, 0, unheard() }
    for r = 1, #requests do
      local jobs, ulids = { 0 }, last[2][r] or ''
      for from = 1, #ulids, 26 do
        local ulid = string.sub(ulids, from, from + 25)
        local job = redis.call('HMGET', P .. 'j:' .. ulid, 't', 'n', 'w', 'ck', 'a')
        -- What was ended or taken back meanwhile is no longer the caller's, even if its worker was given it again.
        if job[3] == requests[r].worker and job[5] == last[4] then
          local n = #jobs
          jobs[n + 1], jobs[n + 2], jobs[n + 3] = ulid, job[1], told(ulid, job[2], job[4])
          jobs[n + 4] = redis.call('GET', P .. 'r:' .. ulid) or ''
        end
      end
      answer[#answer + 1] = jobs
    end
    return answer
  end
end

local config = redis.call('HMGET', P .. 'config', 'paused', 'ageing')
local ageing = tonumber(config[2])
if config[1] == '1' then
  local answer = { now, 1, unheard() }
  for _ = 1, #requests do answer[#answer + 1] = { 0 } end
  if #lost > 0 then remember({}, {}) end
  return answer
end

-- Entries left on each route, read once for all the routes of the call.
local left, popped = {}, {}
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
  local sizes = redis.call('HMGET', P .. 'ready', unpack(slice))
  for i, route in ipairs(slice) do left[route] = tonumber(sizes[i] or 0) end
end

local function took(route, count)
  left[route] = left[route] - count
  popped[route] = (popped[route] or 0) + count
end

-- Entries come as three lists side by side, because a table for each would cost as much as its commands.
local function entry_lists() return { ulids = {}, routes = {}, priorities = {} } end

local function add_entry(into, ulid, route, priority)
  local n = #into.ulids + 1
  into.ulids[n], into.routes[n], into.priorities[n] = ulid, route, priority
end

-- A priority as it is stored, from the score of a ZSET entry.
local function priority_of(score) return text_of(255 - score) end

-- Takes up to `need` entries off one route.
local function pop_route(route, need, into)
  local high = redis.call('ZPOPMIN', P .. 'z:' .. route, need)
  for i = 1, #high, 2 do add_entry(into, high[i], route, priority_of(high[i + 1])) end
  local rest = need - #high / 2
  local low = rest > 0 and redis.call('LPOP', P .. 'l:' .. route, rest) or {}
  for _, ulid in ipairs(low) do add_entry(into, ulid, route, '0') end
  local count = #high / 2 + #low
  took(route, count)
  if count < need then
    -- The route is dry; a count that says otherwise would make every claim look again.
    popped[route] = (popped[route] or 0) + left[route]
    left[route] = 0
  end
end

-- Takes up to `need` entries off several routes, best first: looks at the heads, merges, then pops what it chose.
local function pop_routes(routes, need, into)
  local heads = {}
  for r, route in ipairs(routes) do
    local head = entry_lists()
    local high = redis.call('ZRANGE', P .. 'z:' .. route, 0, need - 1, 'WITHSCORES')
    for i = 1, #high, 2 do add_entry(head, high[i], route, 255 - high[i + 1]) end
    head.high = #head.ulids
    if head.high < need then
      for _, ulid in ipairs(redis.call('LRANGE', P .. 'l:' .. route, 0, need - head.high - 1)) do
        add_entry(head, ulid, route, 0)
      end
    end
    head.next = 1
    heads[r] = head
  end
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
    if high > 0 then redis.call('ZPOPMIN', P .. 'z:' .. route, high) end
    if count > high then redis.call('LPOP', P .. 'l:' .. route, count - high) end
    took(route, count)
    if #head.ulids == 0 then
      popped[route] = (popped[route] or 0) + left[route]
      left[route] = 0
    end
  end
end

-- The same over any number of routes where priorities age (include/ageing.lua).
local function pop_aged(routes, need, into)
  local levels = take_aged(P, routes, need, now, ageing, function(ulid, route, priority)
    add_entry(into, ulid, route, text_of(priority))
  end)
  local more = {}
  for _, level in ipairs(levels) do
    took(level.route, #level.taken)
    if level.best then more[level.route] = true end
  end
  for _, route in ipairs(routes) do
    if not more[route] then
      popped[route] = (popped[route] or 0) + left[route]
      left[route] = 0
    end
  end
end

-- The records of the jobs from the place `first` on, as many as are read in one go, and whether none of them has a HASH: most
-- jobs come here for the first time, and then there is nothing to read of each.
local function records_from(ulids, first)
  local records, hashes = {}, {}
  for i = first, math.min(first + RECORDS_AT_ONCE - 1, #ulids) do
    records[#records + 1] = P .. 'r:' .. ulids[i]
    hashes[#hashes + 1] = P .. 'j:' .. ulids[i]
  end
  return redis.call('MGET', unpack(records)), redis.call('EXISTS', unpack(hashes)) == 0
end

-- Returns entries from the place `first` on to where they were taken from, the last one first, so that each finds its place again.
local function put_back(entries, first)
  for i = #entries.ulids, first, -1 do
    local ulid, route, priority = entries.ulids[i], entries.routes[i], entries.priorities[i]
    if priority == '0' then
      redis.call('LPUSH', P .. 'l:' .. route, ulid)
    else
      redis.call('ZADD', P .. 'z:' .. route, 255 - priority, ulid)
    end
    took(route, -1)
  end
end

-- Noted with the job, so that its end need not measure the record; jobs of one batch are often of one size.
local size_texts = {}

local function size_text(size)
  local known = size_texts[size]
  if not known then
    known = text_of(size)
    size_texts[size] = known
  end
  return known
end

-- Ends a job whose moment for a start is over.
local function end_waiting(ulid, key, revision, state, name)
  local job = redis.call('HMGET', key, 'b', 'uk', 'kp')
  enter_terminal(P, ulid, state, successor(revision), now, ARGV[5], job[1], job[2], job[3])
  moved(ulid, PENDING, state)
  total(name)
end

local NOTHING, claimed = {}, {}
local answer, saved, workers = { now, 0, unheard() }, {}, {}
local leases, started, stale, call_bytes = {}, 0, 0, 0
for r, request in ipairs(requests) do
  local jobs, held, more, request_bytes = { 0 }, {}, 0, 0
  local need, size = request.most, 1
  local lease_end = text_of(now + request.lease)
  while need > 0 and more == 0 do
    local live = {}
    for _, route in ipairs(request.routes) do
      if left[route] > 0 then live[#live + 1] = route end
    end
    if #live == 0 then break end
    if stale >= STALE_BOUND then
      more = 1
      break
    end
    local entries = entry_lists()
    if ageing then
      pop_aged(live, need, entries)
    elseif #live == 1 then
      pop_route(live[1], need, entries)
    else
      pop_routes(live, need, entries)
    end
    local records, all_bare
    for i, ulid in ipairs(entries.ulids) do
      local at = (i - 1) % RECORDS_AT_ONCE + 1
      if at == 1 then records, all_bare = records_from(entries.ulids, i) end
      local record = records[at]
      local key = P .. 'j:' .. ulid
      local job = NOTHING
      if not all_bare or claimed[ulid] then job = redis.call('HMGET', key, 's', 't', 'n', 'v', 'xt', 'ex', 'dl', 'ck') end
      if (job[1] and job[1] ~= '2') or not record then
        stale = stale + 1
      elseif job[6] and tonumber(job[6]) <= now and (job[3] or '0') == '0' then
        end_waiting(ulid, key, job[4], EXPIRED, 'expired')
        stale = stale + 1
      elseif job[7] and tonumber(job[7]) <= now then
        redis.call('HSET', key, 'de', '1')
        end_waiting(ulid, key, job[4], FAILED, 'failed')
        stale = stale + 1
      elseif (#held > 0 and request_bytes + #record > REQUEST_BYTES) or (started > 0 and call_bytes + #record > CALL_BYTES) then
        put_back(entries, i)
        more = 1
        break
      else
        local token, attempt = successor(job[2]), successor(job[3])
        redis.call('HSET', key, 's', '3', 't', token, 'n', attempt, 'v', successor(job[4]),
          'w', request.worker, 'a', now_text, 'rt', entries.routes[i], 'p', entries.priorities[i],
          'b', size_text(#record))
        if job[5] then redis.call('ZADD', P .. 'timers', now + job[5], 't' .. ulid) end
        -- What has started does not expire any more; the entry would outlive the job.
        if job[6] then redis.call('ZREM', P .. 'timers', 'e' .. ulid) end
        jobs[size + 1], jobs[size + 2], jobs[size + 3], jobs[size + 4] = ulid, token, told(ulid, attempt, job[8]), record
        request_bytes, call_bytes = request_bytes + #record, call_bytes + #record
        size = size + 4
        started = started + 1
        leases[2 * started - 1], leases[2 * started] = lease_end, ulid
        changed[#changed + 1] = ulid
        claimed[ulid] = true
        held[#held + 1] = ulid
        need = need - 1
      end
    end
  end
  if #held > 0 then each_slice('SADD', P .. 'held:' .. request.worker, held) end
  jobs[1] = more
  answer[#answer + 1] = jobs
  saved[r], workers[r] = table.concat(held), request.worker
end

for route, count in pairs(popped) do
  if count ~= 0 and redis.call('HINCRBY', P .. 'ready', route, -count) <= 0 then
    redis.call('HDEL', P .. 'ready', route)
  end
end
if started > 0 then
  each_slice('ZADD', P .. 'leases', leases)
  moved_many(started, PENDING, RUNNING)
  total('started', started)
end
if started > 0 or #lost > 0 then remember(saved, workers) end
publish_tally(P)
return answer

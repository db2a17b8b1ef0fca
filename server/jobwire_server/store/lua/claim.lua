#!lua flags=allow-oom
-- claim.lua: PENDING -> RUNNING for as many jobs as the requests ask for and their routes have.
-- Highest priority first, then the oldest id over all the routes of a request. Jobs that were cancelled, expired or
-- claimed by id leave stale entries behind, which are dropped here.
-- KEYS[1] jw:{<queue>}:                    prefix of every key of the queue:
--           r:<ulid> j:<ulid> l:<route> z:<route> ready timers counts totals (submit.lua)
--           leases                 ZSET    ulid -> end of the lease, Unix ms
--           held:<worker>          SET     ulids that the worker holds
--           config                 HASH    paused = 1
--           done:8                 ZSET    ulid -> when an expired job may be forgotten, Unix ms
--           claimed:<server>       STRING  the server's last answer, kept for 60 s
-- ARGV[1] clock shift, ms
-- ARGV[2] server id
-- ARGV[3] number of this call, unique within the server: a call that is repeated because its answer was lost gets that answer
-- ARGV[4] retention of jobs that turn out to be expired, ms
-- ARGV[5] number of route sets, then for each: the number of its routes, the routes
-- then for each request four: worker, most jobs, lease in ms, number of its route set from 1
-- Returns {now, paused 0|1, then for each request {more 0|1, then for each job ulid, fencing token, attempt, record}};
--   more = 1: stopped early at the bound on stale entries, ask again
--include clock ready tally chunks terminal

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local answer_key = P .. 'claimed:' .. ARGV[2]
local call = ARGV[3]
local PENDING, RUNNING, EXPIRED = 2, 3, 8
-- The most stale entries that one call drops, so that no call holds up the store.
local STALE_BOUND = 2000

local sets, requests = {}, {}
local at = 6
for s = 1, tonumber(ARGV[5]) do
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

local last = redis.call('GET', answer_key)
if last then
  last = cmsgpack.unpack(last)
  if last[1] == call then
    local answer = { now, 0 }
    for r = 1, #requests do
      local flat = { 0 }
      for _, job in ipairs(last[2][r] or {}) do
        local n = #flat
        flat[n + 1], flat[n + 2], flat[n + 3] = job[1], job[2], job[3]
        flat[n + 4] = redis.call('GET', P .. 'r:' .. job[1]) or ''
      end
      answer[#answer + 1] = flat
    end
    return answer
  end
end

if redis.call('HGET', P .. 'config', 'paused') == '1' then
  local answer = { now, 1 }
  for _ = 1, #requests do answer[#answer + 1] = { 0 } end
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

-- Takes up to `need` entries {ulid, route, priority} off one route.
local function pop_route(route, need, into)
  local high = redis.call('ZPOPMIN', P .. 'z:' .. route, need)
  for i = 1, #high, 2 do
    into[#into + 1] = { high[i], route, 255 - tonumber(high[i + 1]) }
  end
  local rest = need - #high / 2
  local low = rest > 0 and redis.call('LPOP', P .. 'l:' .. route, rest) or {}
  for _, ulid in ipairs(low or {}) do into[#into + 1] = { ulid, route, 0 } end
  local count = #high / 2 + (low and #low or 0)
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
  for _, route in ipairs(routes) do
    local entries = {}
    local high = redis.call('ZRANGE', P .. 'z:' .. route, 0, need - 1, 'WITHSCORES')
    for i = 1, #high, 2 do
      entries[#entries + 1] = { high[i], route, 255 - tonumber(high[i + 1]) }
    end
    local zset = #entries
    if zset < need then
      for _, ulid in ipairs(redis.call('LRANGE', P .. 'l:' .. route, 0, need - zset - 1)) do
        entries[#entries + 1] = { ulid, route, 0 }
      end
    end
    heads[#heads + 1] = { entries = entries, zset = zset, next = 1 }
  end
  for _ = 1, need do
    local best, best_head
    for _, head in ipairs(heads) do
      local entry = head.entries[head.next]
      if entry and (not best or entry[3] > best[3] or (entry[3] == best[3] and entry[1] < best[1])) then
        best, best_head = entry, head
      end
    end
    if not best then break end
    best_head.next = best_head.next + 1
    into[#into + 1] = best
  end
  for i, head in ipairs(heads) do
    local count = head.next - 1
    local high = math.min(count, head.zset)
    if high > 0 then redis.call('ZPOPMIN', P .. 'z:' .. routes[i], high) end
    if count > high then redis.call('LPOP', P .. 'l:' .. routes[i], count - high) end
    took(routes[i], count)
    if #head.entries == 0 then
      popped[routes[i]] = (popped[routes[i]] or 0) + left[routes[i]]
      left[routes[i]] = 0
    end
  end
end

local function records_of(entries)
  local keys = {}
  for i, entry in ipairs(entries) do keys[i] = P .. 'r:' .. entry[1] end
  return #keys > 0 and redis.call('MGET', unpack(keys)) or keys
end

local answer, saved = { now, 0 }, {}
local leases, started, stale = {}, 0, 0
for r, request in ipairs(requests) do
  local jobs, kept, held, more = { 0 }, {}, {}, 0
  local need = request.most
  while need > 0 do
    local live = {}
    for _, route in ipairs(request.routes) do
      if left[route] > 0 then live[#live + 1] = route end
    end
    if #live == 0 then break end
    if stale >= STALE_BOUND then
      more = 1
      break
    end
    local entries = {}
    if #live == 1 then pop_route(live[1], need, entries) else pop_routes(live, need, entries) end
    local records = records_of(entries)
    for i, entry in ipairs(entries) do
      local ulid, key = entry[1], P .. 'j:' .. entry[1]
      local job = redis.call('HMGET', key, 's', 't', 'n', 'v', 'xt', 'ex')
      local state = tonumber(job[1] or PENDING)
      if state ~= PENDING or not records[i] then
        stale = stale + 1
      elseif job[6] and tonumber(job[6]) <= now and (job[3] or '0') == '0' then
        local purge_at = now + tonumber(ARGV[4])
        redis.call('HSET', key, 's', EXPIRED, 'v', (job[4] or 0) + 1, 'e', now, 'pg', purge_at)
        file_terminal(P, ulid, EXPIRED, purge_at)
        moved(ulid, PENDING, EXPIRED)
        total('expired')
        stale = stale + 1
      else
        local token, attempt = (job[2] or 0) + 1, (job[3] or 0) + 1
        redis.call('HSET', key, 's', RUNNING, 't', token, 'n', attempt, 'v', (job[4] or 0) + 1,
          'w', request.worker, 'a', now, 'rt', entry[2], 'p', entry[3])
        if job[5] then redis.call('ZADD', P .. 'timers', now + tonumber(job[5]), 't' .. ulid) end
        -- What has started does not expire any more; the entry would outlive the job.
        if job[6] then redis.call('ZREM', P .. 'timers', 'e' .. ulid) end
        local n = #jobs
        jobs[n + 1], jobs[n + 2], jobs[n + 3], jobs[n + 4] = ulid, token, attempt, records[i]
        kept[#kept + 1] = { ulid, token, attempt }
        leases[#leases + 1] = now + request.lease
        leases[#leases + 1] = ulid
        held[#held + 1] = ulid
        moved(ulid, PENDING, RUNNING)
        started = started + 1
        need = need - 1
      end
    end
  end
  if #held > 0 then each_slice('SADD', P .. 'held:' .. request.worker, held) end
  jobs[1] = more
  answer[#answer + 1] = jobs
  saved[r] = kept
end

for route, count in pairs(popped) do
  if count ~= 0 and redis.call('HINCRBY', P .. 'ready', route, -count) <= 0 then
    redis.call('HDEL', P .. 'ready', route)
  end
end
if started > 0 then
  each_slice('ZADD', P .. 'leases', leases)
  total('started', started)
  redis.call('SET', answer_key, cmsgpack.pack({ call, saved }), 'PX', 60000)
end
publish_tally(P)
return answer

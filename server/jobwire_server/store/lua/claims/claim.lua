#!lua flags=allow-oom
-- claim.lua: PENDING -> RUNNING for as many jobs as the requests ask for and their routes have.
-- Highest priority first, then the oldest id over all the routes of a request; where the queue lets priorities age, by what they
-- count as now. Jobs that were cancelled, expired, missed their deadline or were claimed by id leave stale entries behind, which are
-- dropped here.
-- KEYS[1] jw:{<queue>}:                    prefix of every key of the queue:
--           r:<ulid> j:<ulid> c:<ulid> l:<route> z:<route> ready timers counts totals (submit.lua)
--           leases                 ZSET    ulid -> end of the lease, Unix ms
--           held:<worker>          SET     ulids that the worker holds
--           config                 HASH    paused = 1; ageing -> the wait that counts as one priority, ms (include/ageing.lua)
--           done:6 done:8          ZSET    ulid -> when a job that missed its deadline, or expired, may be forgotten, Unix ms
--           claimed:<server>       STRING  the server's last answer that brought something, kept for 60 s (include/lost_answers.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] server id
-- ARGV[3] number of this call, unique within the server: a call that is repeated because its answer was lost gets that answer
-- ARGV[4] number of the last call that brought something and whose answer the server heard, 0 for none
-- ARGV[5] retention of jobs that turn out to be expired or past their deadline and have none of their own, ms
-- ARGV[6] number of route sets, then for each: the number of its routes, the routes
-- then for each request four: worker, most jobs (or <most jobs>/<most bytes>), lease in ms, number of its route set from 1
-- Returns {now, paused 0|1, unheard, then for each request {more 0|1, then for each job ulid, fencing token, attempt, record}};
--   attempt: its number, or {number, checkpoint} for a job with a checkpoint
--   more = 1: stopped early at the bound on stale entries, or on bytes, ask again
--   unheard: three values for each job of an earlier call whose answer was lost for good: worker, ulid, fencing token
--constants states
--include clock numbers tally chunks state holder unique terminal ageing requests records lost_answers popping

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local now_text = text_of(now)
local answer_key, call = P .. 'claimed:' .. ARGV[2], ARGV[3]
local retention = ARGV[5]
-- The most stale entries that one call drops, so that no call holds up the store.
local STALE_BOUND = 2000
-- The most bytes of jobs that go to one request, and out of one call: an answer must fit into what workers take as a message, and
-- no call may fill the store's memory with its answer. A first job may be larger, unless the request says how many bytes it takes.
local REQUEST_BYTES, CALL_BYTES = 2 * 1024 * 1024, 8 * 1024 * 1024

local sets, requests = read_requests(7, tonumber(ARGV[6]))
local last = last_answer(answer_key, call, ARGV[4])
if last and last.call == call then
  local answer = { now, 0, unheard(P) }
  for r, request in ipairs(requests) do
    answer[#answer + 1] = answer_again(P, last, request.worker, last.saved[r] or '')
  end
  return answer
end

local config = redis.call('HMGET', P .. 'config', 'paused', 'ageing')
local ageing = tonumber(config[2])
if config[1] == '1' then
  local answer = { now, 1, unheard(P) }
  for _ = 1, #requests do answer[#answer + 1] = { 0 } end
  if #lost > 0 then remember(answer_key, call, {}, {}, now_text) end
  return answer
end

-- Ends a job whose moment for a start is over.
local function end_unstarted(ulid, key, revision, target)
  local bytes, unique, own_retention = unpack(redis.call('HMGET', key, 'b', 'uk', 'kp'))
  end_waiting(P, ulid, { revision = revision, bytes = bytes, unique = unique, retention = own_retention }, target, now, retention)
end

count_entries(P, sets)
tally.none_ends = true
local changed, claimed = tally.changed, {}
local answer, saved, workers = { now, 0, unheard(P) }, {}, {}
local leases, started, stale, call_bytes = {}, 0, 0, 0
for r, request in ipairs(requests) do
  local jobs, held, more, request_bytes, most_bytes = { 0 }, {}, 0, 0, request.bytes or REQUEST_BYTES
  local first_fits = request.bytes == nil
  local need, size = request.most, 1
  local lease_end = text_of(now + request.lease)
  while need > 0 and more == 0 do
    local live = live_routes(request.routes)
    if #live == 0 then break end
    if stale >= STALE_BOUND then
      more = 1
      break
    end
    local entries = pop_entries(P, live, need, now, ageing)
    local records, all_bare
    for i, ulid in ipairs(entries.ulids) do
      local at = (i - 1) % RECORDS_AT_ONCE + 1
      if at == 1 then records, all_bare = records_from(P, entries.ulids, i) end
      local record = records[at]
      local key = P .. 'j:' .. ulid
      -- Locals and no table by names: include/fields.lua has the reason.
      local state, token, attempt, revision, timeout, expires_at, deadline, checkpoint
      if not all_bare or claimed[ulid] then
        state, token, attempt, revision, timeout, expires_at, deadline, checkpoint =
          unpack(redis.call('HMGET', key, 's', 't', 'n', 'v', 'xt', 'ex', 'dl', 'ck'))
      end
      if (state and state ~= PENDING_TEXT) or not record then
        stale = stale + 1
      elseif expires_at and tonumber(expires_at) <= now and (attempt or '0') == '0' then
        end_unstarted(ulid, key, revision, EXPIRED)
        stale = stale + 1
      elseif deadline and tonumber(deadline) <= now then
        redis.call('HSET', key, 'de', '1')
        end_unstarted(ulid, key, revision, FAILED)
        stale = stale + 1
      elseif ((#held > 0 or not first_fits) and request_bytes + #record > most_bytes)
        or (started > 0 and call_bytes + #record > CALL_BYTES) then
        put_back(P, entries, i)
        more = 1
        break
      else
        token, attempt = successor(token), successor(attempt)
        redis.call('HSET', key, 's', RUNNING_TEXT, 't', token, 'n', attempt, 'v', successor(revision),
          'w', request.worker, 'a', now_text, 'rt', entries.routes[i], 'p', entries.priorities[i],
          'b', size_text(#record))
        if timeout then redis.call('ZADD', P .. 'timers', now + timeout, 't' .. ulid) end
        -- What has started does not expire any more; the entry would outlive the job.
        if expires_at then redis.call('ZREM', P .. 'timers', 'e' .. ulid) end
        jobs[size + 1], jobs[size + 2] = ulid, token
        local told = attempt_told(P, ulid, attempt, checkpoint)
        local bytes = #record
        if checkpoint then bytes = bytes + #told[2] end
        jobs[size + 3], jobs[size + 4] = told, record
        request_bytes, call_bytes = request_bytes + bytes, call_bytes + bytes
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

write_counts(P)
if started > 0 then
  each_slice('ZADD', P .. 'leases', leases)
  moved_many(started, PENDING, RUNNING)
  total('started', started)
end
if started > 0 or #lost > 0 then remember(answer_key, call, saved, workers, now_text) end
publish_tally(P)
return answer

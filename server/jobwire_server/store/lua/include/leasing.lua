-- The claim itself, for claim.lua and for submit_claim.lua.

-- Ends a job whose moment for a start is over.
local function end_unstarted(P, ulid, key, revision, target, now, retention)
  local bytes, unique, own_retention = unpack(redis.call('HMGET', key, 'b', 'uk', 'kp'))
  end_waiting(P, ulid, { revision = revision, bytes = bytes, unique = unique, retention = own_retention }, target, now, retention)
end

-- Leases jobs to workers. `server`, `call`, `heard` and `retention` are those of claim.lua; its route sets, so many, and its requests
-- stand in ARGV from `first` to `last`. Returns the answer, and the jobs that this very call has leased: ulid -> true. The caller
-- publishes the tally.
local function lease_jobs(P, now, server, call, heard, retention, set_count, first, last)
  -- The most stale entries that one call drops, so that no call holds up the store.
  local STALE_BOUND = 2000
  -- The most bytes of jobs that go to one request, and out of one call: an answer must fit into what workers take as a message, and
  -- no call may fill the store's memory with its answer. A first job may be larger, unless the request says how many bytes it takes.
  local REQUEST_BYTES, CALL_BYTES = 2 * 1024 * 1024, 8 * 1024 * 1024
  local now_text = text_of(now)
  local answer_key = P .. 'claimed:' .. server
  local sets, requests = read_requests(first, set_count, last)
  local before = last_answer(answer_key, call, heard)
  if before and before.call == call then
    local answer = { now, 0, unheard(P) }
    for r, request in ipairs(requests) do
      answer[#answer + 1] = answer_again(P, before, request.worker, before.saved[r] or '')
    end
    return answer, {}
  end

  local config = redis.call('HMGET', P .. 'config', 'paused', 'ageing')
  local ageing = tonumber(config[2])
  if config[1] == '1' then
    local answer = { now, 1, unheard(P) }
    for _ = 1, #requests do answer[#answer + 1] = { 0 } end
    if #lost > 0 then remember(answer_key, call, {}, {}, now_text) end
    return answer, {}
  end

  count_entries(P, sets)
  local changed, claimed = tally.changed, {}
  local answer, saved, workers, filled = { now, 0, unheard(P) }, {}, {}, {}
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
          end_unstarted(P, ulid, key, revision, EXPIRED, now, retention)
          stale = stale + 1
        elseif deadline and tonumber(deadline) <= now then
          redis.call('HSET', key, 'de', '1')
          end_unstarted(P, ulid, key, revision, FAILED, now, retention)
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
    filled[r] = need == 0
    answer[#answer + 1] = jobs
    saved[r], workers[r] = table.concat(held), request.worker
  end

  for r, request in ipairs(requests) do
    if filled[r] and #live_routes(request.routes) > 0 then answer[r + 3][1] = 1 end
  end
  write_counts(P)
  if started > 0 then
    each_slice('ZADD', P .. 'leases', leases)
    moved_many(started, PENDING, RUNNING)
    total('started', started)
  end
  if started > 0 or #lost > 0 then remember(answer_key, call, saved, workers, now_text) end
  return answer, claimed
end

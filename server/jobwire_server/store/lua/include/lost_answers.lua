-- Answers of claims that their server never heard. The STRING claimed:<server> holds the server's last answer that brought something: number of
-- the call, for each request the ULIDs end to end, the workers, start of the attempts, and lost answers before it. A call that is
-- repeated gets that answer again. One that was given up for good, because the store stood still or the call reached it only after that,
-- leaves jobs that no worker knows of; they are told as unheard until a server has heard of them.

-- The most jobs of lost answers that are remembered; the others come back when their leases end.
local LOST_BOUND = 2000
local REMEMBERED_MS = 60000
-- Start of the attempts, worker, ULIDs end to end, and so on.
local lost, lost_jobs = {}, 0

local function note_lost(started_at, worker, ulids)
  lost_jobs = lost_jobs + #ulids / 26
  if #ulids > 0 and lost_jobs <= LOST_BOUND then
    local n = #lost
    lost[n + 1], lost[n + 2], lost[n + 3] = started_at, worker, ulids
  end
end

-- Returns the last answer, nil for none; notes what was lost unless it is the one that the server heard last or is being repeated.
local function last_answer(key, call, heard)
  local raw = redis.call('GET', key)
  if not raw then return nil end
  local number, saved, workers, started_at, lost_before = unpack(cmsgpack.unpack(raw))
  if number ~= heard then
    if number ~= call then
      for r, ulids in ipairs(saved) do note_lost(started_at, workers[r], ulids) end
    end
    for i = 1, #lost_before, 3 do note_lost(lost_before[i], lost_before[i + 1], lost_before[i + 2]) end
  end
  return { call = number, saved = saved, started_at = started_at }
end

-- Returns the jobs of lost answers that are still leased by them.
local function unheard(prefix)
  local found = {}
  for i = 1, #lost, 3 do
    local started_at, worker, ulids = lost[i], lost[i + 1], lost[i + 2]
    for from = 1, #ulids, 26 do
      local ulid = string.sub(ulids, from, from + 25)
      local token, holder, since = unpack(redis.call('HMGET', prefix .. 'j:' .. ulid, 't', 'w', 'a'))
      if holder == worker and since == started_at then
        local n = #found
        found[n + 1], found[n + 2], found[n + 3] = worker, ulid, token
      end
    end
  end
  if #found == 0 then lost = {} end
  return found
end

-- Keeps an answer, and what was lost before it.
local function remember(key, call, saved, workers, started_at)
  redis.call('SET', key, cmsgpack.pack({ call, saved, workers, started_at, lost }), 'PX', REMEMBERED_MS)
end

-- Returns the jobs of one request of an answer again.
local function answer_again(prefix, last, worker, ulids)
  local jobs = { 0 }
  for from = 1, #ulids, 26 do
    local ulid = string.sub(ulids, from, from + 25)
    local token, attempt, holder, checkpoint, since = unpack(redis.call('HMGET', prefix .. 'j:' .. ulid, 't', 'n', 'w', 'ck', 'a'))
    -- What was ended or taken back meanwhile is no longer the caller's, even if its worker was given it again.
    if holder == worker and since == last.started_at then
      local n = #jobs
      jobs[n + 1], jobs[n + 2], jobs[n + 3] = ulid, token, attempt_told(prefix, ulid, attempt, checkpoint)
      jobs[n + 4] = redis.call('GET', prefix .. 'r:' .. ulid) or ''
    end
  end
  return jobs
end

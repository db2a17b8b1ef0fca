#!lua flags=allow-oom
-- purge.lua: forgets terminal jobs whose retention has ended, and everything of theirs; then, if the queue is above its limits, those
-- that would be forgotten next.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: r:<ulid> j:<ulid> h:<ulid> x:<ulid> o:<ulid> c:<ulid> usage written done:<state> counts (end_attempt.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] the most jobs to forget in this call, at most 1000
-- ARGV[3] the most ended jobs that are kept, 0 for no limit   ARGV[4] the most bytes of their records and results, 0 for no limit
-- Returns {forgotten, due of the next or 0}
--constants states
--include clock fields tally state holder unique terminal forget

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local most, max_jobs, max_bytes = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local forgotten, next_due = 0, 0

for state = SUCCEEDED, EXPIRED do
  local key = P .. 'done:' .. state
  local ids = most > 0 and redis.call('ZRANGE', key, '-inf', now, 'BYSCORE', 'LIMIT', 0, most) or {}
  if #ids > 0 then
    forget(P, state, ids)
    forgotten = forgotten + #ids
    most = most - #ids
  end
end

-- How many jobs have ended, and their bytes, with what this call has forgotten.
local function ended()
  local jobs = 0
  for state = SUCCEEDED, EXPIRED do
    jobs = jobs + (redis.call('HGET', P .. 'counts', state) or 0) + (tally.counts[state] or 0)
  end
  return jobs, (redis.call('HGET', P .. 'usage', 'ended') or 0) + tally.ended
end

local function measure(ulid)
  return ended_bytes(P, ulid, read_ended(P .. 'j:' .. ulid))
end

if most > 0 and (max_jobs > 0 or max_bytes > 0) then
  local jobs, bytes = ended()
  local function above() return (max_jobs > 0 and jobs > max_jobs) or (max_bytes > 0 and bytes > max_bytes) end
  local heads, at, chosen = {}, { 1, 1, 1, 1, 1, 1, 1, 1 }, {}
  for state = SUCCEEDED, EXPIRED do
    heads[state] = above() and redis.call('ZRANGE', P .. 'done:' .. state, 0, most - 1, 'WITHSCORES') or {}
    chosen[state] = {}
  end
  while most > 0 and above() do
    local first
    for state = SUCCEEDED, EXPIRED do
      local score = tonumber(heads[state][at[state] + 1])
      if score and (not first or score < tonumber(heads[first][at[first] + 1])) then first = state end
    end
    if not first then break end
    local ulid = heads[first][at[first]]
    at[first] = at[first] + 2
    table.insert(chosen[first], ulid)
    jobs, most, forgotten = jobs - 1, most - 1, forgotten + 1
    if max_bytes > 0 then bytes = bytes - measure(ulid) end
  end
  for state = SUCCEEDED, EXPIRED do forget(P, state, chosen[state]) end
end

for state = SUCCEEDED, EXPIRED do
  local head = redis.call('ZRANGE', P .. 'done:' .. state, 0, 0, 'WITHSCORES')
  local at = head[2] and tonumber(head[2]) or 0
  if at > 0 and (next_due == 0 or at < next_due) then next_due = at end
end
publish_tally(P)
return { forgotten, next_due }

#!lua flags=allow-oom
-- tick.lua: what the clock does to a queue: SCHEDULED -> PENDING when due, SCHEDULED or PENDING -> EXPIRED, or FAILED at
-- the job's deadline. Attempts that the clock ends are only named, because the decision about them is made outside and applied by
-- end_attempt.lua. Entries of jobs that are no longer PENDING are dropped from the fronts of some routes, because no claim drops those of
-- routes that no worker serves.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: due (schedule_write.lua) r:<ulid> j:<ulid> scheduled timers leases l:<route>
--           z:<route> ready counts totals config done:6 done:8 (end_attempt.lua)
--           samples  LIST  "<ms> submitted started succeeded failed", newest first
-- ARGV[1] clock shift, ms
-- ARGV[2] the most jobs of each kind to handle in this call
-- ARGV[3] retention of jobs that end here and have none of their own, ms
-- ARGV[4] interval of the samples, ms   ARGV[5] how many samples are kept
-- ARGV[6] the moment after which it is too late to judge which leases have ended, Unix ms; 0: none is judged
-- Returns {now, more 0|1, tidied 0|1, due of the next known moment or 0, config as fields and values, then for each attempt to end:
--   condition, ulid; and for each schedule that is due: condition, its id};
--   condition: 'lease' | 'timeout' | 'deadline' | 'grace' | 'schedule'
--   more = 1: there is more to do at once; tidied = 1: stale entries were dropped, there may be more of them at the next look
--constants states
--include clock fields ready tally state holder unique terminal

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local most, retention = tonumber(ARGV[2]), tonumber(ARGV[3])
local answer = { now, 0, 0, 0, redis.call('HGETALL', P .. 'config') }
local read_waiting = reader_of({ state = 's', revision = 'v', attempts = 'n', bytes = 'b', unique = 'uk', retention = 'kp' })
local read_due = reader_of({ route = 'rt', priority = 'p', revision = 'v' })

local function due_in(name)
  local members = redis.call('ZRANGE', P .. name, '-inf', now, 'BYSCORE', 'LIMIT', 0, most)
  if #members == most then answer[2] = 1 end
  return members
end

-- An entry that outlived its attempt is dropped, or every tick would name it again.
local function leased(ulid)
  local state = redis.call('HGET', P .. 'j:' .. ulid, 's')
  return state == RUNNING_TEXT or state == CANCELLING_TEXT
end

local OVERDUE = { t = 'timeout', d = 'deadline', c = 'grace' }

for _, member in ipairs(due_in('timers')) do
  local kind, ulid = string.sub(member, 1, 1), string.sub(member, 2)
  if OVERDUE[kind] and leased(ulid) then
    answer[#answer + 1] = OVERDUE[kind]
    answer[#answer + 1] = ulid
  else
    redis.call('ZREM', P .. 'timers', member)
    local job = read_waiting(P .. 'j:' .. ulid)
    local state = tonumber(job.state)
    if state == SCHEDULED or state == PENDING then
      if kind == 'd' then
        redis.call('HSET', P .. 'j:' .. ulid, 'de', 1)
        end_waiting(P, ulid, job, FAILED, now, retention)
      elseif kind == 'e' and (job.attempts or '0') == '0' then
        -- A job that was started once is past the point that expires_at guards.
        end_waiting(P, ulid, job, EXPIRED, now, retention)
      end
    end
  end
end

local due = due_in('scheduled')
for _, ulid in ipairs(due) do
  local key = P .. 'j:' .. ulid
  local job = read_due(key)
  redis.call('HSET', key, 's', PENDING, 'v', (job.revision or 0) + 1, 'ps', now)
  push_ready(P, ulid, job.route, job.priority, false)
  moved(ulid, SCHEDULED, PENDING)
end
if #due > 0 then redis.call('ZREM', P .. 'scheduled', unpack(due)) end

if now <= tonumber(ARGV[6]) then
  for _, ulid in ipairs(due_in('leases')) do
    if leased(ulid) then
      answer[#answer + 1] = 'lease'
      answer[#answer + 1] = ulid
    else
      redis.call('ZREM', P .. 'leases', ulid)
    end
  end
end

-- How many routes one call looks at, picked at random, and how far into each.
local ROUTES, FRONT = 8, 100

local function stale(ulid)
  return state_of(P, ulid, redis.call('HGET', P .. 'j:' .. ulid, 's')) ~= PENDING
end

local function stale_in_front(ids)
  local count = 0
  while ids[count + 1] and stale(ids[count + 1]) do count = count + 1 end
  return count
end

for _, route in ipairs(redis.call('HRANDFIELD', P .. 'ready', ROUTES)) do
  local list, zset = P .. 'l:' .. route, P .. 'z:' .. route
  local low = stale_in_front(redis.call('LRANGE', list, 0, FRONT - 1))
  local high = stale_in_front(redis.call('ZRANGE', zset, 0, FRONT - 1))
  if low > 0 then redis.call('LPOP', list, low) end
  if high > 0 then redis.call('ZPOPMIN', zset, high) end
  if low + high > 0 then answer[3] = 1 end
  if low + high > 0 and redis.call('HINCRBY', P .. 'ready', route, -(low + high)) <= 0 then
    redis.call('HDEL', P .. 'ready', route)
  end
end

local newest = redis.call('LINDEX', P .. 'samples', 0)
local age = newest and now - tonumber(string.match(newest, '^%d+'))
-- Below 0 after the clock was set back.
local totals = redis.call('HMGET', P .. 'totals', 'submitted', 'started', 'succeeded', 'failed')
-- A queue that was deleted meanwhile stays so.
if totals[1] and (not age or age >= tonumber(ARGV[4]) or age < 0) then
  redis.call('LPUSH', P .. 'samples', now .. ' ' .. (totals[1] or 0) .. ' ' .. (totals[2] or 0) .. ' '
    .. (totals[3] or 0) .. ' ' .. (totals[4] or 0))
  redis.call('LTRIM', P .. 'samples', 0, tonumber(ARGV[5]) - 1)
end

-- The broker decides about schedules too, and fire.lua moves them on.
for _, id in ipairs(redis.call('ZRANGE', P .. 'due', '-inf', now, 'BYSCORE', 'LIMIT', 0, most)) do
  answer[#answer + 1] = 'schedule'
  answer[#answer + 1] = id
end

publish_tally(P)
publish_ready(P)

for _, name in ipairs({ 'scheduled', 'timers', 'leases', 'due' }) do
  -- What is due now stays in front until its end is decided, and must not hide what follows it.
  local head = redis.call('ZRANGE', P .. name, '(' .. now, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
  local at = head[2] and tonumber(head[2]) or 0
  if at > 0 and (answer[4] == 0 or at < answer[4]) then answer[4] = at end
end
return answer

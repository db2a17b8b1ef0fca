#!lua flags=allow-oom
-- retry.lua: FAILED, CANCELLED or EXPIRED -> PENDING or SCHEDULED for each job (a redrive), with fresh budgets. Its attempts, its
-- output, its checkpoint and its fencing token stay.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: r:<ulid> j:<ulid> u:<name> usage l:<route> z:<route> ready scheduled counts (submit.lua)
--           done:<state>  ZSET     ulid -> when it may be forgotten, Unix ms
-- ARGV[1] clock shift, ms
-- then for each job six: ulid, start ('' at once, '<ms>' not before that Unix ms, '+<ms>' not before so many ms from now),
--   route, priority 0..255, how often it had been redriven when the caller looked, reason
-- Returns for each job {code, state}: code 0 done | 1 not found | 2 it is in a state that no redrive leads out of | 3 it was redriven
--   before: by this very call, whose answer was lost, or by somebody else since the caller looked | {4, state, ulid} of the job that
--   holds its unique key by now
--include clock ready tally holder unique terminal

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local SCHEDULED, PENDING, FAILED, EXPIRED = 1, 2, 6, 8
local answer, woken = {}, {}

local function start_ms(start)
  if start == '' then return 0 end
  if string.sub(start, 1, 1) == '+' then return now + tonumber(string.sub(start, 2)) end
  return tonumber(start)
end

for at = 2, #ARGV, 6 do
  local ulid, route, priority, reason = ARGV[at], ARGV[at + 2], ARGV[at + 3], ARGV[at + 5]
  local key = P .. 'j:' .. ulid
  local job = redis.call('HMGET', key, 's', 'v', 'rn', 'n', 'b', 'uk')
  local state, number = tonumber(job[1] or PENDING), tonumber(job[3] or 0)
  if redis.call('EXISTS', P .. 'r:' .. ulid) == 0 then
    answer[#answer + 1] = { 1 }
  elseif number ~= tonumber(ARGV[at + 4]) then
    answer[#answer + 1] = { 3, state }
  elseif state < FAILED or state > EXPIRED then
    answer[#answer + 1] = { 2, state }
  else
    local holder = job[6] and take_key_again(P, job[6], ulid, job[4], now)
    if holder then
      answer[#answer + 1] = { 4, holder.state, holder.ulid }
    else
      local due = start_ms(ARGV[at + 1])
      local target = due > now and SCHEDULED or PENDING
      -- The limits that held for the life which ended do not hold for this one.
      redis.call('HDEL', key, 'e', 'pg', 'f', 'c', 'i', 'l', 'ca', 'cd', 'ex', 'dl', 'de', 'rr')
      redis.call('HSET', key, 's', target, 'v', (job[2] or 0) + 1, 'rt', route, 'p', priority,
        'ra', now, 'rf', state, 'rn', number + 1)
      if reason ~= '' then redis.call('HSET', key, 'rr', reason) end
      redis.call('ZREM', P .. 'done:' .. state, ulid)
      if target == SCHEDULED then
        redis.call('HSET', key, 'd', due)
        redis.call('ZADD', P .. 'scheduled', due, ulid)
      else
        redis.call('HSET', key, 'ps', now)
        push_ready(P, ulid, route, priority, false)
        woken[route] = (woken[route] or 0) + 1
      end
      local size = record_bytes(P, ulid, job[5])
      weigh(size, -size)
      moved(ulid, state, target)
      answer[#answer + 1] = { 0, target }
    end
  end
end

publish_tally(P)
local wake = {}
for route, count in pairs(woken) do wake[#wake + 1] = route .. ':' .. count end
if #wake > 0 then redis.pcall('SPUBLISH', P .. 'ready', table.concat(wake, ',')) end
return answer

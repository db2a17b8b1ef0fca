#!lua flags=allow-oom
-- redrive.lua: FAILED, CANCELLED or EXPIRED -> PENDING or SCHEDULED for each job (a redrive), with fresh budgets. Its attempts, its
-- output, its checkpoint and its fencing token stay.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: r:<ulid> j:<ulid> u:<name> usage l:<route> z:<route> ready scheduled counts (submit.lua)
--           done:<state>  ZSET     ulid -> when it may be forgotten, Unix ms
-- ARGV[1] clock shift, ms
-- then for each job seven: ulid, start ('' at once, '<ms>' not before that Unix ms, '+<ms>' not before so many ms from now),
--   route, priority 0..255, how often it had been redriven when the caller looked, reason, what is kept of the request ('' none)
-- Returns for each job {DONE, state} | {NOT_FOUND} | {WRONG_STATE, state} that no redrive leads out of | {ALREADY_REDRIVEN, state} by
--   this very call, whose answer was lost, or by somebody else since the caller looked | {KEY_TAKEN, state, ulid} of the job that
--   holds its unique key by now
--constants states codes
--include clock fields start ready tally state holder unique terminal

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local answer = {}
local read_job = reader_of({ state = 's', revision = 'v', redrives = 'rn', attempts = 'n', bytes = 'b', unique = 'uk' })

for at = 2, #ARGV, 7 do
  local ulid, route, priority, reason = ARGV[at], ARGV[at + 2], ARGV[at + 3], ARGV[at + 5]
  local key = P .. 'j:' .. ulid
  local job = read_job(key)
  local state, number = tonumber(job.state or PENDING), tonumber(job.redrives or 0)
  if redis.call('EXISTS', P .. 'r:' .. ulid) == 0 then
    answer[#answer + 1] = { NOT_FOUND }
  elseif number ~= tonumber(ARGV[at + 4]) then
    answer[#answer + 1] = { ALREADY_REDRIVEN, state }
  elseif state < FAILED or state > EXPIRED then
    answer[#answer + 1] = { WRONG_STATE, state }
  else
    local holder = job.unique and take_key_again(P, job.unique, ulid, job.attempts, now)
    if holder then
      answer[#answer + 1] = { KEY_TAKEN, holder.state, holder.ulid }
    else
      local due = start_ms(ARGV[at + 1], now)
      local target = due > now and SCHEDULED or PENDING
      -- The limits that held for the life which ended do not hold for this one.
      redis.call('HDEL', key, 'e', 'pg', 'f', 'c', 'i', 'l', 'ca', 'cd', 'ex', 'dl', 'de', 'rr', 'rq')
      redis.call('HSET', key, 's', target, 'v', (job.revision or 0) + 1, 'rt', route, 'p', priority,
        'ra', now, 'rf', state, 'rn', number + 1)
      if reason ~= '' then redis.call('HSET', key, 'rr', reason) end
      if ARGV[at + 6] ~= '' then redis.call('HSET', key, 'rq', ARGV[at + 6]) end
      redis.call('ZREM', P .. 'done:' .. state, ulid)
      if target == SCHEDULED then
        redis.call('HSET', key, 'd', due)
        redis.call('ZADD', P .. 'scheduled', due, ulid)
      else
        redis.call('HSET', key, 'ps', now)
        push_ready(P, ulid, route, priority, false)
      end
      local size = record_bytes(P, ulid, job.bytes)
      weigh(size, -size)
      moved(ulid, state, target)
      answer[#answer + 1] = { DONE, target }
    end
  end
end

publish_tally(P)
publish_ready(P)
return answer

#!lua flags=allow-oom
-- trim.lua: drops what a queue keeps for less time than its jobs: the output of ended jobs, and old entries of the event log.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: j:<ulid> o:<ulid> usage (report.lua)
--           written  ZSET    ulid of a job that keeps output -> when to look at it again, Unix ms (include/output.lua)
--           log      STREAM  the event log (include/tally.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] the most jobs to look at in this call
-- ARGV[3] how long the output of an ended job is kept, ms, '' as long as the job
-- ARGV[4] the age above which entries of the event log go, ms, '' none
-- Returns how many jobs were looked at
--constants states
--include clock numbers fields

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local looked, dropped = 0, 0
-- A shorter setting applies to older output within the hour.
local SOONEST, LATEST = 1000, 3600000
local read_job = reader_of({ state = 's', ended_at = 'e', output_end = 'oe', output_bytes = 'ob' })

local function look_at(ulid, retention)
  local key = P .. 'j:' .. ulid
  local job = read_job(key)
  local state, kept = tonumber(job.state), tonumber(job.output_bytes or 0)
  local due = state and state >= SUCCEEDED and job.ended_at + retention or now + math.max(retention, SOONEST)
  if not state or kept == 0 then
    redis.call('ZREM', P .. 'written', ulid)
  elseif due > now then
    redis.call('ZADD', P .. 'written', text_of(math.min(due, now + LATEST)), ulid)
  else
    redis.call('UNLINK', P .. 'o:' .. ulid)
    -- A reader learns that it was trimmed up to its end.
    redis.call('HSET', key, 'ob', '0', 'of', job.output_end)
    redis.call('ZREM', P .. 'written', ulid)
    dropped = dropped + kept
  end
end

if ARGV[3] ~= '' then
  local due = redis.call('ZRANGE', P .. 'written', '-inf', now, 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]))
  for _, ulid in ipairs(due) do look_at(ulid, tonumber(ARGV[3])) end
  looked = #due
  if dropped > 0 then redis.call('HINCRBY', P .. 'usage', 'output', text_of(-dropped)) end
end
if ARGV[4] ~= '' then
  -- The newest of the old entries stays, so that a watcher who waits behind it can go on.
  local newest = redis.call('XREVRANGE', P .. 'log', text_of(now - ARGV[4]), '-', 'COUNT', 1)[1]
  if newest then redis.call('XTRIM', P .. 'log', 'MINID', newest[1]) end
end
return looked

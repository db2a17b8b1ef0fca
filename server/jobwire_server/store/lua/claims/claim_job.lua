#!lua flags=allow-oom
-- claim_job.lua: PENDING -> RUNNING for one job named by id. Its entry on the route goes stale and is dropped by a later claim.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue (claim.lua), (report.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] ulid   ARGV[3] worker   ARGV[4] lease, ms   ARGV[5] route   ARGV[6] priority
-- Returns {DONE, token, attempt, record, checkpoint or ''} | {NOT_FOUND} | {WRONG_STATE, state} not PENDING | {QUEUE_PAUSED}
--   A repeated call by the worker that holds the job gets the claim again.
--constants states codes
--include clock fields tally

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local ulid, worker = ARGV[2], ARGV[3]
local key = P .. 'j:' .. ulid
local read_job = reader_of({
  state = 's', token = 't', attempt = 'n', revision = 'v', timeout = 'xt', expires_at = 'ex', worker = 'w', deadline = 'dl',
  checkpoint = 'ck',
})

local record = redis.call('GET', P .. 'r:' .. ulid)
if not record then return { NOT_FOUND } end
local job = read_job(key)
local state = tonumber(job.state or PENDING)
local checkpoint = job.checkpoint and redis.call('GET', P .. 'c:' .. ulid) or ''
if state == RUNNING and job.worker == worker then
  return { DONE, tonumber(job.token), tonumber(job.attempt), record, checkpoint }
end
if state ~= PENDING then return { WRONG_STATE, state } end
if redis.call('HGET', P .. 'config', 'paused') == '1' then return { QUEUE_PAUSED } end
if job.expires_at and tonumber(job.expires_at) <= now and (job.attempt or '0') == '0' then return { WRONG_STATE, EXPIRED } end
if job.deadline and tonumber(job.deadline) <= now then return { WRONG_STATE, FAILED } end

local token, attempt = (job.token or 0) + 1, (job.attempt or 0) + 1
redis.call('HSET', key, 's', RUNNING, 't', token, 'n', attempt, 'v', (job.revision or 0) + 1,
  'w', worker, 'a', now, 'rt', ARGV[5], 'p', ARGV[6], 'b', #record)
if job.timeout then redis.call('ZADD', P .. 'timers', now + tonumber(job.timeout), 't' .. ulid) end
if job.expires_at then redis.call('ZREM', P .. 'timers', 'e' .. ulid) end
redis.call('ZADD', P .. 'leases', now + tonumber(ARGV[4]), ulid)
redis.call('SADD', P .. 'held:' .. worker, ulid)
moved(ulid, PENDING, RUNNING)
total('started')
publish_tally(P)
return { DONE, token, attempt, record, checkpoint }

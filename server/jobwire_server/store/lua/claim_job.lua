#!lua flags=allow-oom
-- claim_job.lua: PENDING -> RUNNING for one job named by id. Its entry on the route goes stale and is dropped by a later claim.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue (claim.lua), (progress.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] ulid   ARGV[3] worker   ARGV[4] lease, ms   ARGV[5] route   ARGV[6] priority
-- Returns {code, ...}: {0, token, attempt, record, checkpoint or ''} | {1} not found | {2, state} not PENDING | {3} the queue is paused
--   A repeated call by the worker that holds the job gets the claim again.
--include clock tally

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local ulid, worker = ARGV[2], ARGV[3]
local key = P .. 'j:' .. ulid
local PENDING, RUNNING = 2, 3

local record = redis.call('GET', P .. 'r:' .. ulid)
if not record then return { 1 } end
local job = redis.call('HMGET', key, 's', 't', 'n', 'v', 'xt', 'ex', 'w', 'dl', 'ck')
local state = tonumber(job[1] or PENDING)
local checkpoint = job[9] and redis.call('GET', P .. 'c:' .. ulid) or ''
if state == RUNNING and job[7] == worker then
  return { 0, tonumber(job[2]), tonumber(job[3]), record, checkpoint }
end
if state ~= PENDING then return { 2, state } end
if redis.call('HGET', P .. 'config', 'paused') == '1' then return { 3 } end
if job[6] and tonumber(job[6]) <= now and (job[3] or '0') == '0' then return { 2, 8 } end
if job[8] and tonumber(job[8]) <= now then return { 2, 6 } end

local token, attempt = (job[2] or 0) + 1, (job[3] or 0) + 1
redis.call('HSET', key, 's', RUNNING, 't', token, 'n', attempt, 'v', (job[4] or 0) + 1,
  'w', worker, 'a', now, 'rt', ARGV[5], 'p', ARGV[6], 'b', #record)
if job[5] then redis.call('ZADD', P .. 'timers', now + tonumber(job[5]), 't' .. ulid) end
if job[6] then redis.call('ZREM', P .. 'timers', 'e' .. ulid) end
redis.call('ZADD', P .. 'leases', now + tonumber(ARGV[4]), ulid)
redis.call('SADD', P .. 'held:' .. worker, ulid)
moved(ulid, PENDING, RUNNING)
total('started')
publish_tally(P)
return { 0, token, attempt, record, checkpoint }

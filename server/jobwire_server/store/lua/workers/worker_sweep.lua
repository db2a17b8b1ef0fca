#!lua flags=allow-oom
-- worker_sweep.lua: marks silent workers LOST, and forgets those that were lost long ago. Also a sign of life of the calling server.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen ids lost left forget servers changes (worker_register.lua)
-- ARGV[1] clock shift, ms   ARGV[2] silence that makes a worker lost, ms   ARGV[3] how long lost workers are listed, ms
-- ARGV[4] the most workers of each kind to handle in this call   ARGV[5] server
-- ARGV[6] the moment after which it is too late to judge who is silent, Unix ms; 0: nobody is judged
-- Returns {now in Unix ms, then for each worker whose jobs are not back yet: id, when it was lost in Unix ms, its entry of left}
--constants workers
--include clock fields

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local silence, most = tonumber(ARGV[2]), tonumber(ARGV[4])
local SERVERS_KEPT_MS = 3600 * 1000
local read_worker = reader_of({ server = 'server', spec = 'spec' })

redis.call('ZADD', P .. 'servers', now, ARGV[5])
redis.call('ZREMRANGEBYSCORE', P .. 'servers', '-inf', now - SERVERS_KEPT_MS)
-- The clock was set back: signs of life cannot come from the future.
for _, id in ipairs(redis.call('ZRANGE', P .. 'seen', '(' .. (now + 1000), '+inf', 'BYSCORE', 'LIMIT', 0, most)) do
  redis.call('ZADD', P .. 'seen', now, id)
end

if now <= tonumber(ARGV[6]) then
  local silent = redis.call('ZRANGE', P .. 'seen', '-inf', now - silence, 'BYSCORE', 'LIMIT', 0, most, 'WITHSCORES')
  for i = 1, #silent, 2 do
    local id, heard = silent[i], tonumber(silent[i + 1])
    local worker = read_worker(P .. 'w:' .. id)
    local spoke = worker.server and redis.call('ZSCORE', P .. 'servers', worker.server)
    -- A server that fell silent with its worker says nothing about it.
    local unheard = worker.server and tonumber(spoke or 0) < heard + silence / 2
    redis.call('HSET', P .. 'w:' .. id, 'status', LOST, 'lost', now, 'up', 0)
    redis.call('HSET', P .. 'left', id, (unheard and 'u ' or 'c ') .. heard .. ' ' .. (worker.spec or ''))
    redis.call('ZREM', P .. 'seen', id)
    redis.call('ZADD', P .. 'lost', now, id)
    redis.call('ZADD', P .. 'forget', now + tonumber(ARGV[3]), id)
    redis.pcall('SPUBLISH', P .. 'changes', id)
  end
end
for _, id in ipairs(redis.call('ZRANGE', P .. 'forget', '-inf', now, 'BYSCORE', 'LIMIT', 0, most)) do
  redis.call('DEL', P .. 'w:' .. id)
  for _, name in ipairs({ 'ids', 'lost', 'forget' }) do redis.call('ZREM', P .. name, id) end
  redis.call('HDEL', P .. 'left', id)
end
local answer = { now }
local lost = redis.call('ZRANGE', P .. 'lost', 0, most - 1, 'WITHSCORES')
for i = 1, #lost, 2 do
  local n = #answer
  answer[n + 1], answer[n + 2] = lost[i], lost[i + 1]
  answer[n + 3] = redis.call('HGET', P .. 'left', lost[i]) or ''
end
return answer

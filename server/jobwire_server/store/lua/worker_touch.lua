#!lua flags=allow-oom
-- worker_touch.lua: records a sign of life of each live worker.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen (worker_register.lua, worker_attach.lua)
-- ARGV[1] clock shift, ms   ARGV[2] server
-- then for each worker five: id, session of its stream ('' for one that makes calls), since when that counts in Unix ms, instance,
--   stats ('' unchanged)
-- Returns for each worker its status | 0 not known | {since, instance} of a newer stream that counts
--include clock

local P, server = KEYS[1], ARGV[2]
local now = clock_ms(ARGV[1])
local LOST = 4
local answer, seen = {}, {}
for at = 3, #ARGV, 5 do
  local id, session, stats = ARGV[at], ARGV[at + 1], ARGV[at + 4]
  local key = P .. 'w:' .. id
  local worker = redis.call('HMGET', key, 'status', 'session', 'since', 'at', 'instance', 'server')
  local status = tonumber(worker[1] or 0)
  local found = status
  if status > 0 and session == '' then
    -- Who speaks of a stream is known from its attachment.
    if worker[6] ~= server and not worker[2] then redis.call('HSET', key, 'server', server) end
  elseif status > 0 and worker[2] ~= session then
    local since = tonumber(worker[3] or worker[4])
    if since >= tonumber(ARGV[at + 2]) then
      status, found = 0, { since, worker[5] or '' }
    else
      -- This primary took over before it had heard of this stream.
      redis.call('HSET', key, 'session', session, 'since', ARGV[at + 2], 'instance', ARGV[at + 3], 'server', server, 'up', 1)
    end
  end
  if status > 0 and status ~= LOST then
    seen[#seen + 1] = now
    seen[#seen + 1] = id
    if stats ~= '' then redis.call('HSET', key, 'stats', stats) end
  end
  answer[#answer + 1] = found
end
if #seen > 0 then redis.call('ZADD', P .. 'seen', unpack(seen)) end
return answer

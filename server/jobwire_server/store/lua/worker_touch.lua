#!lua flags=allow-oom
-- worker_touch.lua: records a sign of life of each live worker.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen (worker_register.lua, worker_attach.lua)
-- ARGV[1] clock shift, ms
-- then for each worker three: id, session of its stream ('' for one that makes calls), stats ('' unchanged)
-- Returns for each worker its status | 0 not known | below 0: another stream counts, since that moment in Unix ms, negated
--include clock

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local LOST = 4
local answer, seen = {}, {}
for at = 2, #ARGV, 3 do
  local id, session, stats = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local key = P .. 'w:' .. id
  local worker = redis.call('HMGET', key, 'status', 'session', 'since', 'at')
  local status = tonumber(worker[1] or 0)
  if status > 0 and session ~= '' and worker[2] ~= session then status = -tonumber(worker[3] or worker[4]) end
  if status > 0 and status ~= LOST then
    seen[#seen + 1] = now
    seen[#seen + 1] = id
    if stats ~= '' then redis.call('HSET', key, 'stats', stats) end
  end
  answer[#answer + 1] = status
end
if #seen > 0 then redis.call('ZADD', P .. 'seen', unpack(seen)) end
return answer

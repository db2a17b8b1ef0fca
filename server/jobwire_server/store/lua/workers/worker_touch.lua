#!lua flags=allow-oom
-- worker_touch.lua: records a sign of life of each live worker.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen (worker_register.lua, worker_attach.lua)
-- ARGV[1] clock shift, ms   ARGV[2] server
-- then for each worker five: id, session of its stream ('' for one that makes calls), since when that counts in Unix ms, instance,
--   stats ('' unchanged)
-- Returns for each worker its status | 0 unknown | {since, instance} of a newer stream that counts
--constants workers
--include clock

local P, server = KEYS[1], ARGV[2]
local now = clock_ms(ARGV[1])
local answer, seen = {}, {}
for at = 3, #ARGV, 5 do
  local id, session, stats = ARGV[at], ARGV[at + 1], ARGV[at + 4]
  local key = P .. 'w:' .. id
  -- Into locals, because every server sends hundreds of these a second (include/fields.lua).
  local known_status, known_session, since, registered_at, instance, known_server =
    unpack(redis.call('HMGET', key, 'status', 'session', 'since', 'at', 'instance', 'server'))
  local status = tonumber(known_status or 0)
  local found = status
  if status > 0 and session == '' then
    -- Which server has a stream is known from its attachment.
    if known_server ~= server and not known_session then redis.call('HSET', key, 'server', server) end
  elseif status > 0 and known_session ~= session then
    local counts_since = tonumber(since or registered_at)
    if counts_since >= tonumber(ARGV[at + 2]) then
      status, found = 0, { counts_since, instance or '' }
    else
      -- This primary took over before it heard of this stream.
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

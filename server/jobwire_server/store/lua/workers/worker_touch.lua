#!lua flags=allow-oom
-- worker_touch.lua: records a sign of life of each live worker.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen (worker_register.lua, worker_attach.lua); in addition
--           moved  channel: ids, by spaces, of workers whose held jobs or credits changed, or what they tell of themselves
-- ARGV[1] clock shift, ms   ARGV[2] server   ARGV[3] what to say on `moved` ('' nothing)
-- then for each worker six: id, session of its stream ('' for one that makes calls), since when that counts in Unix ms, instance,
--   stats ('' unchanged), meta ('' unchanged)
-- Returns for each worker its status | 0 unknown | {since, instance} of a newer stream that counts
--constants workers
--include clock

local P, server = KEYS[1], ARGV[2]
local now = clock_ms(ARGV[1])
local answer, seen = {}, {}
for at = 4, #ARGV, 6 do
  local id, session, stats, meta = ARGV[at], ARGV[at + 1], ARGV[at + 4], ARGV[at + 5]
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
    if meta ~= '' then redis.call('HSET', key, 'meta', meta) end
  end
  answer[#answer + 1] = found
end
if #seen > 0 then redis.call('ZADD', P .. 'seen', unpack(seen)) end
if ARGV[3] ~= '' then redis.pcall('SPUBLISH', P .. 'moved', ARGV[3]) end
return answer

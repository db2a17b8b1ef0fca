#!lua flags=allow-oom
-- worker_attach.lua: registers a worker and gives it to one stream, which supersedes an earlier one.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen ids lost left forget servers (worker_register.lua); in addition
--           w:<id>   HASH  session (of the stream that counts), since (when it attached, Unix ms; grows from stream to stream whatever
--                          the clock does), instance (of the worker's process), attempt (the process's number of this attachment),
--                          server, up 1|0 (its stream holds), former (what this session's attachment found), stats (JSON)
--           changes  channel: '<id> <session>'
-- ARGV[1] clock shift, ms   ARGV[2] id   ARGV[3] spec   ARGV[4] session   ARGV[5] instance   ARGV[6] server
-- ARGV[7] attempt (0 unknown)   ARGV[8] a server without a sign of life for so long is silent, ms
-- ARGV[9] the moment after which it is too late to take the id from another process, Unix ms; 0: it is not to be taken
-- Returns {since, status, former, stats of the same process}: former 0 there was none | 1 the same process | another process, whose
--   jobs are to be taken back: 2 its stream had ended | 3 its stream held | 4 its stream held at a server that is silent |
--   5 a later attempt of this process counts: nothing was done | 6 another process, which may live, and it is too late to take the id
--   from it: nothing was done, and since is the present. A repeated call gets the first answer about it.
--constants workers
--include clock fields

local P, id = KEYS[1], ARGV[2]
local key = P .. 'w:' .. id
local now = clock_ms(ARGV[1])
local session, instance, server, attempt = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local former, status, since, stats = NOBODY, READY, now, ''
local read_worker = reader_of({
  status = 'status', instance = 'instance', registered_at = 'at', session = 'session', former = 'former', stats = 'stats',
  since = 'since', attempt = 'attempt', up = 'up', server = 'server',
})
local known = read_worker(key)

local function server_speaks()
  if known.server == server then return true end
  local spoke = known.server and redis.call('ZSCORE', P .. 'servers', known.server)
  return spoke and tonumber(spoke) > now - tonumber(ARGV[8])
end

if known.session == session then
  -- By now the instance is this call's own, so only what was noted tells of the one before.
  former, since = tonumber(known.former), tonumber(known.since or now)
  if known.status ~= LOST_TEXT then status = tonumber(known.status) end
elseif known.status then
  -- The worker gave this attachment up, and it comes late, from a server that had stood still for instance.
  if known.instance == instance and attempt ~= '0' and tonumber(known.attempt or 0) >= tonumber(attempt) then
    since, status = tonumber(known.since), tonumber(known.status)
    return { since, status, LATER, '' }
  end
  local another = known.instance and known.instance ~= instance
  if another and known.status ~= LOST_TEXT and now > tonumber(ARGV[9]) then return { now, tonumber(known.status), LIVES, '' } end
  since = math.max(now, tonumber(known.since or 0) + 1)
  -- A worker that made calls before may not have named its process; it is taken for the same.
  if not another then
    former = SAME
    -- What an operator asked of this process holds over its streams.
    if known.status ~= LOST_TEXT then status = tonumber(known.status) end
  elseif known.up ~= '1' then
    former = ENDED
  else
    former = server_speaks() and HELD or UNHEARD
  end
end
if former >= ENDED and known.session ~= session then redis.call('DEL', key) else redis.call('HDEL', key, 'lost') end
redis.call('HSET', key, 'spec', ARGV[3], 'status', status, 'session', session, 'instance', instance, 'server', server,
  'since', since, 'attempt', attempt, 'up', 1, 'former', former, 'at', former == SAME and known.registered_at or now)
redis.call('ZADD', P .. 'seen', now, id)
redis.call('ZADD', P .. 'ids', 0, id)
redis.call('ZREM', P .. 'lost', id)
redis.call('HDEL', P .. 'left', id)
redis.call('ZREM', P .. 'forget', id)
if former == SAME then stats = known.stats or '' end
redis.pcall('SPUBLISH', P .. 'changes', id .. ' ' .. session)
return { since, status, former, stats }

#!lua flags=allow-oom
-- worker_attach.lua: makes a worker known and gives it to one stream; an earlier stream of its is superseded.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen ids lost left forget servers (worker_register.lua); in addition
--           w:<id>   HASH  session (of the stream that counts), since (it counts, Unix ms; grows from stream to stream whatever the
--                          clock does), instance (of the worker's process), attempt (the process's number of this attachment),
--                          server, up 1|0 (its stream holds), former (what this session's attachment found), stats (JSON)
--           changes  channel: '<id> <session>'
-- ARGV[1] clock shift, ms   ARGV[2] id   ARGV[3] spec   ARGV[4] session   ARGV[5] instance   ARGV[6] server
-- ARGV[7] attempt (0 not said)   ARGV[8] a server not heard of for so long is silent, ms
-- Returns {since, status, former, stats of the same process}: former 0 there was none | 1 the same process | another process, whose
--   jobs are to be taken back: 2 its stream had ended | 3 its stream held | 4 its stream held at a server that is silent |
--   5 a later attempt of this process counts: nothing was done. A repeated call gets the first answer about it.
--include clock

local P, id = KEYS[1], ARGV[2]
local key = P .. 'w:' .. id
local now = clock_ms(ARGV[1])
local SAME, ENDED, HELD, UNHEARD, LATER = 1, 2, 3, 4, 5
local former, status, since, stats = 0, 1, now, ''
local known = redis.call('HMGET', key, 'status', 'instance', 'at', 'session', 'former', 'stats', 'since', 'attempt', 'up', 'server')

local function server_speaks()
  if known[10] == ARGV[6] then return true end
  local spoke = known[10] and redis.call('ZSCORE', P .. 'servers', known[10])
  return spoke and tonumber(spoke) > now - tonumber(ARGV[8])
end

if known[4] == ARGV[4] then
  -- By now the instance is this call's own, so only what was noted tells of the one before.
  former, since = tonumber(known[5]), tonumber(known[7] or now)
  if known[1] ~= '4' then status = tonumber(known[1]) end
elseif known[1] then
  -- Abandoned by the worker and answered late, by a server that had stood still for instance.
  if known[2] == ARGV[5] and ARGV[7] ~= '0' and tonumber(known[8] or 0) >= tonumber(ARGV[7]) then
    since, status = tonumber(known[7]), tonumber(known[1])
    return { since, status, LATER, '' }
  end
  since = math.max(now, tonumber(known[7] or 0) + 1)
  -- A worker that made calls before may have no process of its own name; it is taken for the same.
  if not known[2] or known[2] == ARGV[5] then
    former = SAME
    -- What an operator asked of this process holds over its streams.
    if known[1] ~= '4' then status = tonumber(known[1]) end
  elseif known[9] ~= '1' then
    former = ENDED
  else
    former = server_speaks() and HELD or UNHEARD
  end
end
if former >= ENDED and known[4] ~= ARGV[4] then redis.call('DEL', key) else redis.call('HDEL', key, 'lost') end
redis.call('HSET', key, 'spec', ARGV[3], 'status', status, 'session', ARGV[4], 'instance', ARGV[5], 'server', ARGV[6],
  'since', since, 'attempt', ARGV[7], 'up', 1, 'former', former, 'at', former == SAME and known[3] or now)
redis.call('ZADD', P .. 'seen', now, id)
redis.call('ZADD', P .. 'ids', 0, id)
redis.call('ZREM', P .. 'lost', id)
redis.call('HDEL', P .. 'left', id)
redis.call('ZREM', P .. 'forget', id)
if former == SAME then stats = known[6] or '' end
redis.pcall('SPUBLISH', P .. 'changes', id .. ' ' .. ARGV[4])
return { since, status, former, stats }

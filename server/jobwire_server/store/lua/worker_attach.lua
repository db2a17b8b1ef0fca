#!lua flags=allow-oom
-- worker_attach.lua: makes a worker known and gives it to one stream; an earlier stream of its is superseded.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen ids lost forget (worker_register.lua); in addition
--           w:<id>   HASH  session (of the stream that counts), since (it counts, Unix ms), instance (of the worker's process),
--                          server, up 1|0 (its stream holds), former (what this session's attachment found), stats (JSON)
--           changes  channel: '<id> <session>'
-- ARGV[1] clock shift, ms   ARGV[2] id   ARGV[3] spec   ARGV[4] session   ARGV[5] instance   ARGV[6] server
-- Returns {now in Unix ms, status, former, stats of the same process}: former 0 there was none | 1 the same process |
--   2 another process, whose jobs are to be taken back. A repeated call gets the first answer about it.
--include clock

local P, id = KEYS[1], ARGV[2]
local key = P .. 'w:' .. id
local now = clock_ms(ARGV[1])
local former, status = 0, 1
local known = redis.call('HMGET', key, 'status', 'instance', 'at', 'session', 'former', 'stats')
if known[4] == ARGV[4] then
  -- By now the instance is this call's own, so only what was noted tells of the one before.
  former = tonumber(known[5])
  if known[1] ~= '4' then status = tonumber(known[1]) end
elseif known[1] then
  -- A worker that made calls before has no process of its own name; it is taken for the same.
  former = (not known[2] or known[2] == ARGV[5]) and 1 or 2
  -- What an operator asked of this process holds over its streams.
  if former == 1 and known[1] ~= '4' then status = tonumber(known[1]) end
end
if former == 2 and known[4] ~= ARGV[4] then redis.call('DEL', key) else redis.call('HDEL', key, 'lost') end
redis.call('HSET', key, 'spec', ARGV[3], 'status', status, 'session', ARGV[4], 'instance', ARGV[5], 'server', ARGV[6],
  'since', now, 'up', 1, 'former', former, 'at', former == 1 and known[3] or now)
redis.call('ZADD', P .. 'seen', now, id)
redis.call('ZADD', P .. 'ids', 0, id)
redis.call('ZREM', P .. 'lost', id)
redis.call('ZREM', P .. 'forget', id)
redis.call('SPUBLISH', P .. 'changes', id .. ' ' .. ARGV[4])
return { now, status, former, former == 1 and known[6] or '' }

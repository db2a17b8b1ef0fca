#!lua flags=allow-oom
-- worker_register.lua: registers a worker, READY, or replaces its description. The same process keeps its status, its counters, what
-- it tells of itself and the moment at which it registered first. Jobs that another process of this id held, or that the same one
-- held when it was lost, must be taken back.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys:
--           w:<id>   HASH  spec (JSON), status, at (registered, Unix ms), lost (Unix ms), server (that heard from it last),
--                          instance (of its process, if it named one), stats (JSON), meta (what it tells of itself, JSON)
--           seen     ZSET  id -> last sign of life, Unix ms; live workers only
--           ids      ZSET  id -> 0, for listing by name
--           lost     ZSET  id -> when it was lost, Unix ms, until what it held by then is back in its queues
--           left     HASH  id of those -> 'c' (it fell silent) or 'u' (its server fell silent with it), last sign of life in Unix ms, spec
--           forget   ZSET  id -> when a lost worker leaves the list, Unix ms
--           servers  ZSET  server -> last sign of life, Unix ms
--           changes  channel of the ids of workers that registered, changed, were lost or left
-- ARGV[1] clock shift, ms   ARGV[2] id   ARGV[3] spec   ARGV[4] server   ARGV[5] instance ('' unknown)
-- ARGV[6] the moment after which it is too late to take the id from another process, Unix ms; 0: it is not to be taken
-- Returns {now in Unix ms, 1 there is something to take back | 0, status | 0 the id is that of another process, which may live, and it is
--   too late to take it: nothing was done}
--constants workers
--include clock fields

local P, id = KEYS[1], ARGV[2]
local key = P .. 'w:' .. id
local now = clock_ms(ARGV[1])
local instance, status = ARGV[5], READY
local read_worker = reader_of({
  spec = 'spec', status = 'status', instance = 'instance', registered_at = 'at', since = 'since', stats = 'stats',
})
local known = read_worker(key)
local lives = known.spec and known.status ~= LOST_TEXT
local other = instance ~= '' and known.instance ~= instance
if lives and other then
  if now > tonumber(ARGV[6]) then return { now, 0, 0 } end
  -- Until the moment before: what is claimed from now on belongs to the new one.
  redis.call('ZADD', P .. 'lost', now - 1, id)
  redis.call('HSET', P .. 'left', id, 'c ' .. now .. ' ' .. known.spec)
end
-- A worker that names no process is taken for the one that is known, unless that one was lost.
if known.spec and not other and (lives or instance ~= '') then
  if lives and instance ~= '' then status = tonumber(known.status) end
  redis.call('HDEL', key, 'lost', 'session', 'up', 'former', 'attempt', 'broke')
  -- A stream that it held until now counts no more.
  if known.since then redis.call('HSET', key, 'since', math.max(now, tonumber(known.since) + 1)) end
  -- Of handlers that do not stop it tells anew.
  if known.stats then redis.call('HSET', key, 'stats', (known.stats:gsub(',? ?"stuck": ?%d+', ''))) end
  redis.call('HSET', key, 'spec', ARGV[3], 'status', status, 'at', known.registered_at, 'server', ARGV[4])
else
  redis.call('DEL', key)
  redis.call('HSET', key, 'spec', ARGV[3], 'status', status, 'at', now, 'server', ARGV[4])
end
if instance ~= '' then redis.call('HSET', key, 'instance', instance) end
redis.call('ZADD', P .. 'seen', now, id)
redis.call('ZADD', P .. 'ids', 0, id)
redis.call('ZREM', P .. 'forget', id)
redis.pcall('SPUBLISH', P .. 'changes', id)
return { now, redis.call('ZSCORE', P .. 'lost', id) and 1 or 0, status }

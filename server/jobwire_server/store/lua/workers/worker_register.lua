#!lua flags=allow-oom
-- worker_register.lua: registers a worker, READY, or replaces its description. Jobs that another process of this id held, or that
-- the same one held when it was lost, must be taken back.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys:
--           w:<id>   HASH  spec (JSON), status, at (registered, Unix ms), lost (Unix ms), server (that heard from it last),
--                          instance (of its process, if it named one)
--           seen     ZSET  id -> last sign of life, Unix ms; live workers only
--           ids      ZSET  id -> 0, for listing by name
--           lost     ZSET  id -> when it was lost, Unix ms, until what it held by then is back in its queues
--           left     HASH  id of those -> 'c' (it fell silent) or 'u' (its server fell silent with it), last sign of life in Unix ms, spec
--           forget   ZSET  id -> when a lost worker leaves the list, Unix ms
--           servers  ZSET  server -> last sign of life, Unix ms
--           changes  channel of the ids of workers that registered, changed, were lost or left
-- ARGV[1] clock shift, ms   ARGV[2] id   ARGV[3] spec   ARGV[4] server   ARGV[5] instance ('' unknown)
-- Returns {now in Unix ms, 1 there is something to take back | 0}
--constants workers
--include clock fields

local P, id = KEYS[1], ARGV[2]
local key = P .. 'w:' .. id
local now = clock_ms(ARGV[1])
local read_worker = reader_of({ spec = 'spec', status = 'status', instance = 'instance' })
local known = read_worker(key)
if known.spec and known.status ~= LOST_TEXT and ARGV[5] ~= '' and known.instance ~= ARGV[5] then
  -- Until the moment before: what is claimed from now on belongs to the new one.
  redis.call('ZADD', P .. 'lost', now - 1, id)
  redis.call('HSET', P .. 'left', id, 'c ' .. now .. ' ' .. known.spec)
end
redis.call('DEL', key)
redis.call('HSET', key, 'spec', ARGV[3], 'status', READY, 'at', now, 'server', ARGV[4])
if ARGV[5] ~= '' then redis.call('HSET', key, 'instance', ARGV[5]) end
redis.call('ZADD', P .. 'seen', now, id)
redis.call('ZADD', P .. 'ids', 0, id)
redis.call('ZREM', P .. 'forget', id)
redis.pcall('SPUBLISH', P .. 'changes', id)
return { now, redis.call('ZSCORE', P .. 'lost', id) and 1 or 0 }

#!lua flags=allow-oom
-- worker_register.lua: makes a worker known and READY, or replaces its description.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys:
--           w:<id>   HASH  spec (JSON), status, at (registered, Unix ms), lost (Unix ms)
--           seen     ZSET  id -> last sign of life, Unix ms; live workers only
--           ids      ZSET  id -> 0, for listing by name
--           lost     ZSET  id -> when it was lost, Unix ms, until its jobs are back in their queues
--           forget   ZSET  id -> when a lost worker leaves the list, Unix ms
--           changes  channel of the ids of workers that registered, changed, were lost or left
-- ARGV[1] clock shift, ms   ARGV[2] id   ARGV[3] spec
-- Returns now in Unix ms
--include clock

local P, id = KEYS[1], ARGV[2]
local now = clock_ms(ARGV[1])
redis.call('DEL', P .. 'w:' .. id)
redis.call('HSET', P .. 'w:' .. id, 'spec', ARGV[3], 'status', 1, 'at', now)
redis.call('ZADD', P .. 'seen', now, id)
redis.call('ZADD', P .. 'ids', 0, id)
-- What a former worker of this name held comes back when its leases end; what this one will hold must not be taken for lost.
redis.call('ZREM', P .. 'lost', id)
redis.call('ZREM', P .. 'forget', id)
redis.call('SPUBLISH', P .. 'changes', id)
return now

#!lua flags=allow-oom
-- stir.lua: announces queues that are written to, and returns those that any server announced recently.
-- KEYS[1] jw:{queues}:   prefix of the registry: stirred deleted (unregister.lua)
--           stirred  ZSET  queue, by the moment of its last announcement, ms
-- ARGV[1] clock shift, ms
-- ARGV[2] the moment since which announcements are wanted, Unix ms
-- ARGV[3] how long they are kept, ms; 0: none is dropped now
-- ARGV[4..] for each queue that is announced: its name
-- Returns {now, moment of the latest deletion of a queue or 0, then the queues that were announced}
--include clock

local P = KEYS[1]
local now = clock_ms(ARGV[1])
for at = 4, #ARGV do redis.call('ZADD', P .. 'stirred', now, ARGV[at]) end
if ARGV[3] ~= '0' then redis.call('ZREMRANGEBYSCORE', P .. 'stirred', '-inf', '(' .. (now - ARGV[3])) end
local answer = redis.call('ZRANGE', P .. 'stirred', ARGV[2], '+inf', 'BYSCORE')
local latest = redis.call('ZRANGE', P .. 'deleted', -1, -1, 'WITHSCORES')
table.insert(answer, 1, now)
table.insert(answer, 2, tonumber(latest[2] or 0))
return answer

#!lua flags=allow-oom
-- worker_status.lua: changes whether a live worker takes jobs.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> changes (worker_register.lua)
-- ARGV[1] id   ARGV[2] status, 1..3
-- Returns 1 done | 0 no such live worker
--constants workers

local P, id = KEYS[1], ARGV[1]
local status = redis.call('HGET', P .. 'w:' .. id, 'status')
if not status or status == LOST_TEXT then return 0 end
redis.call('HSET', P .. 'w:' .. id, 'status', ARGV[2])
redis.pcall('SPUBLISH', P .. 'changes', id)
return 1

#!lua flags=allow-oom
-- schedule_delete.lua: removes a schedule; its jobs stay.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: schedule:<id> schedules due (schedule_write.lua) runs:<id> (fire.lua)
-- ARGV[1] schedule id
-- Returns 1 if there was one, else 0
local P = KEYS[1]
local id = ARGV[1]
redis.call('ZREM', P .. 'schedules', id)
redis.call('ZREM', P .. 'due', id)
return redis.call('DEL', P .. 'schedule:' .. id, P .. 'runs:' .. id) > 0 and 1 or 0

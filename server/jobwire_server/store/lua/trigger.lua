#!lua
-- trigger.lua: submits a job of a schedule now. Its moments stay as they are. A full store refuses it.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: schedule:<id> (schedule_write.lua) runs:<id> (fire.lua), those of
--           submit.lua (submit.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] retention of jobs that are replaced, ms
-- ARGV[3] the most jobs that may wait in the queue, 0 for no limit   ARGV[4] the most bytes of live jobs, 0 for no limit
-- ARGV[5] schedule id   ARGV[6] its creation id, '.' and its revision
-- ARGV[7] ulid of the job   ARGV[8] the moment that is noted, Unix ms   ARGV[9] what is appended to its record
-- ARGV[10] extra of the job, as for submit.lua
-- Returns {0, what submit.lua answers for the job} | {1} the schedule is not what the job was made of: nothing done
--include clock ready tally chunks holder unique terminal identity enter runs

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local id, ulid = ARGV[5], ARGV[7]
local found = redis.call('HMGET', P .. 'schedule:' .. id, 'cid', 'rev', 'rt', 'rd', 'p', 'job')
if not found[1] or found[1] .. '.' .. found[2] ~= ARGV[6] then return { 1 } end

redis.call('HSETNX', P .. 'routes', found[3], found[4])
local items = { ulid, found[3], found[5], '', ARGV[10], found[6] .. ARGV[9] }
local entered = {}
enter_jobs(P, now, entered, items, 1, tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]))
if type(entered[1]) == 'number' then note_run(P, id, ARGV[8], now, ulid, true) end
publish_tally(P)
announce_ready(P)
return { 0, entered[1] }

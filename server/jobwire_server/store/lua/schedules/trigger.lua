#!lua
-- trigger.lua: submits a job of a schedule now. Its moments stay as they are. A full store refuses it.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: schedule:<id> (schedule_write.lua) runs:<id> (fire.lua), those of
--           submit.lua (submit.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] retention of jobs that are replaced, ms
-- ARGV[3] the most jobs that may wait in the queue, 0 for no limit   ARGV[4] the most bytes of live jobs, 0 for no limit
-- ARGV[5] schedule id   ARGV[6] its creation id, '.' and its revision
-- ARGV[7] ulid of the job   ARGV[8] the moment that is noted, Unix ms   ARGV[9] what is appended to its record
-- ARGV[10] extra of the job, as for submit.lua   ARGV[11] when it expires   ARGV[12] when it ends ('' never, Unix ms)
-- ARGV[13] priority of a job that names none, as submit.lua takes it
-- Returns {DONE, what submit.lua answers for the job} | {SCHEDULE_CHANGED} since the job was made of it: nothing done
--constants states codes
--include clock fields start ready tally chunks state holder unique terminal identity limits admit enter runs ends

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local id, ulid = ARGV[5], ARGV[7]
local read_schedule = reader_of({
  creation_id = 'cid', revision = 'rev', route = 'rt', descriptor = 'rd', priority = 'p', job = 'job',
})
local schedule = read_schedule(P .. 'schedule:' .. id)
if not schedule.creation_id or schedule.creation_id .. '.' .. schedule.revision ~= ARGV[6] then return { SCHEDULE_CHANGED } end

redis.call('HSETNX', P .. 'routes', schedule.route, schedule.descriptor)
local priority = schedule.priority == '' and ARGV[13] or schedule.priority
local items = { ulid, schedule.route, priority, '', extra_with_ends(ARGV[10], ARGV[11], ARGV[12]), schedule.job .. ARGV[9] }
local entered = {}
enter_jobs(P, now, entered, items, 1, tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]))
if type(entered[1]) == 'number' then note_run(P, id, ARGV[8], now, ulid, true) end
publish_tally(P)
publish_ready(P)
return { DONE, entered[1] }

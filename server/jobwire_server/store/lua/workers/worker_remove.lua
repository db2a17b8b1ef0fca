#!lua flags=allow-oom
-- worker_remove.lua: forgets a worker, unless a newer stream counts by now.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen ids lost left forget changes (worker_register.lua)
-- ARGV[1] id   ARGV[2] session of the stream that it leaves by ('' whichever counts)   ARGV[3] since when that one counts, Unix ms
-- ARGV[4] instance of the process that leaves ('' whichever it is)
-- Returns 1 it was known | 0 it was not, or the id is that of another process | below 0: a newer stream counts, since that moment in Unix ms, negated; nothing was done
--include fields

local P, id = KEYS[1], ARGV[1]
local read_worker = reader_of({ registered_at = 'at', session = 'session', since = 'since', instance = 'instance' })
local worker = read_worker(P .. 'w:' .. id)
local since = tonumber(worker.since or worker.registered_at or 0)
if worker.registered_at and ARGV[2] ~= '' and worker.session ~= ARGV[2] and since >= tonumber(ARGV[3]) then return -since end
if ARGV[4] ~= '' and worker.instance and worker.instance ~= ARGV[4] then return 0 end
local known = redis.call('DEL', P .. 'w:' .. id)
for _, name in ipairs({ 'seen', 'ids', 'lost', 'forget' }) do redis.call('ZREM', P .. name, id) end
redis.call('HDEL', P .. 'left', id)
if known == 1 then redis.pcall('SPUBLISH', P .. 'changes', id) end
return known

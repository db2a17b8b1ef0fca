#!lua flags=allow-oom
-- worker_status.lua: changes whether a live worker takes jobs, and what it tells of itself.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> changes (worker_register.lua)
-- ARGV[1] id   ARGV[2] status, 1..3 ('' no change)   ARGV[3] what it tells of itself, JSON ('' no change)
-- ARGV[4] instance of its process ('' whichever it is)
-- Returns the status as it is then | 0 no such live worker, or the id is that of another process
--constants workers

local P, id = KEYS[1], ARGV[1]
local key = P .. 'w:' .. id
local status, told, instance = unpack(redis.call('HMGET', key, 'status', 'meta', 'instance'))
if not status or status == LOST_TEXT then return 0 end
if ARGV[4] ~= '' and instance and instance ~= ARGV[4] then return 0 end
local wanted, tells = ARGV[2], ARGV[3]
local changed = false
if wanted ~= '' and wanted ~= status then
  redis.call('HSET', key, 'status', wanted)
  status, changed = wanted, true
end
if tells ~= '' and tells ~= told then
  redis.call('HSET', key, 'meta', tells)
  changed = true
end
if changed then redis.pcall('SPUBLISH', P .. 'changes', id) end
return tonumber(status)

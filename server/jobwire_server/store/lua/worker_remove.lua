#!lua flags=allow-oom
-- worker_remove.lua: forgets a worker.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen ids lost forget changes (worker_register.lua)
-- ARGV[1] id
-- Returns 1 it was known | 0 it was not

local P, id = KEYS[1], ARGV[1]
local known = redis.call('DEL', P .. 'w:' .. id)
for _, name in ipairs({ 'seen', 'ids', 'lost', 'forget' }) do redis.call('ZREM', P .. name, id) end
if known == 1 then redis.call('SPUBLISH', P .. 'changes', id) end
return known

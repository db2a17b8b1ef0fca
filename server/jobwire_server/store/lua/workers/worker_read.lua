#!lua flags=no-writes
-- worker_read.lua: workers as they stand, by id, or a page of all of them.
-- KEYS[1] jw:{workers}:   prefix of the registry's keys: w:<id> seen ids (worker_register.lua)
-- ARGV[1] 'page' | 'ids'
-- page: ARGV[2] the last id of the page before ('' none)   ARGV[3] the most workers
-- ids: then for each worker one: id
-- Returns for each worker found: id, last seen in Unix ms, fields and values of its HASH

local P = KEYS[1]
local ids = {}
if ARGV[1] == 'page' then
  local from = ARGV[2] == '' and '-' or '(' .. ARGV[2]
  ids = redis.call('ZRANGE', P .. 'ids', from, '+', 'BYLEX', 'LIMIT', 0, tonumber(ARGV[3]))
else
  for at = 2, #ARGV do ids[#ids + 1] = ARGV[at] end
end
local answer = {}
for _, id in ipairs(ids) do
  local fields = redis.call('HGETALL', P .. 'w:' .. id)
  if #fields > 0 then
    local n = #answer
    answer[n + 1], answer[n + 2], answer[n + 3] = id, redis.call('ZSCORE', P .. 'seen', id) or '0', fields
  end
end
return answer

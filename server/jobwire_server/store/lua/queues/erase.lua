#!lua flags=allow-oom
-- erase.lua: one step of the removal of a queue with everything of it. Nothing is taken from a queue that has live jobs or schedules.
-- Ended jobs go first, then whatever other keys are found, and in one go with the last of them what says that the queue is there.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue (purge.lua), which all go; schedules ZSET of its schedules
-- ARGV[1] where the search for keys goes on, '0' from the start
-- ARGV[2] the most ended jobs to forget in this step, at most 1000   ARGV[3] about how many keys of the store to look at
-- Returns {DONE, where to go on; '' nothing of the queue is left} | {QUEUE_IN_USE, live jobs, schedules}
--constants states codes
--include fields tally state holder unique terminal forget

local P = KEYS[1]
local most = tonumber(ARGV[2])
local live, schedules = 0, redis.call('ZCARD', P .. 'schedules')
for _, count in ipairs(redis.call('HMGET', P .. 'counts', SCHEDULED, PENDING, RUNNING, CANCELLING)) do
  live = live + (count or 0)
end
if live > 0 or schedules > 0 then return { QUEUE_IN_USE, live, schedules } end

for state = SUCCEEDED, EXPIRED do
  local ids = redis.call('ZRANGE', P .. 'done:' .. state, 0, most - 1)
  if #ids > 0 then
    forget(P, state, ids)
    publish_tally(P)
    -- Another job may have ended behind the search.
    return { DONE, '0' }
  end
end

-- Without totals no clock adds samples.
local LAST = { 'config', 'counts', 'samples', 'totals', 'usage' }
local kept = {}
for i, name in ipairs(LAST) do
  LAST[i] = P .. name
  kept[P .. name] = true
end
local page = redis.call('SCAN', ARGV[1], 'MATCH', P .. '*', 'COUNT', ARGV[3])
for _, key in ipairs(page[2]) do
  if not kept[key] then redis.call('UNLINK', key) end
end
if page[1] ~= '0' then return { DONE, page[1] } end
redis.call('UNLINK', unpack(LAST))
return { DONE, '' }

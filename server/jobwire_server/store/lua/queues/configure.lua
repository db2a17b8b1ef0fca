#!lua flags=allow-oom
-- configure.lua: changes the settings of a queue, if they still are what the change was made from.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue:
--           config  HASH    setting -> value (docs/schema.md); log -> entries that the event log keeps; rev -> changes so far
--           log     STREAM  the event log (include/tally.lua)
-- ARGV[1] the revision that the change was made from, 0 whatever it is
-- then for each setting two: its name, its value ('' removes it)
-- Returns DONE | QUEUE_CHANGED the revision is another one, and not because of this very call
--constants codes

local P = KEYS[1]
local config = P .. 'config'
local expected, revision = tonumber(ARGV[1]), (redis.call('HGET', config, 'rev') or 0) + 1
local changed = {}
for at = 2, #ARGV, 2 do
  if (redis.call('HGET', config, ARGV[at]) or '') ~= ARGV[at + 1] then changed[#changed + 1] = at end
end
-- A call whose answer was lost finds its own change.
local repeated = #ARGV > 1 and #changed == 0 and expected + 1 == revision
if expected ~= 0 and expected ~= revision and not repeated then return QUEUE_CHANGED end

for _, at in ipairs(changed) do
  local name, value = ARGV[at], ARGV[at + 1]
  if value == '' then
    redis.call('HDEL', config, name)
    if name == 'log' then redis.call('UNLINK', P .. 'log') end
  else
    redis.call('HSET', config, name, value)
    if name == 'log' then redis.call('XTRIM', P .. 'log', 'MAXLEN', value) end
  end
end
if #changed > 0 then redis.call('HINCRBY', config, 'rev', 1) end
return DONE

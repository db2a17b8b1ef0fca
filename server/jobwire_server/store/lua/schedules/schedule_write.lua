#!lua
-- schedule_write.lua: makes or changes a schedule, if it still is what the change was made from.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue:
--           schedule:<id>  HASH  the schedule: docs/schema.md
--           schedules      ZSET  every schedule, scored 0, to list by name
--           due            ZSET  schedule -> the moment it is due at, Unix ms; absent while it is paused or over
-- ARGV[1] schedule id
-- ARGV[2] creation id, revision, and the moment that it must stand at ('' for none), with '.' between; '' if there must be no schedule
-- ARGV[3] next moment, Unix ms; '' for none
-- then fields of the HASH that change, each followed by its value
-- Returns DONE | NOT_FOUND there is none | SCHEDULE_CHANGED it is not what the change was made from
--constants codes
--include fields

local P = KEYS[1]
local id, expected, due = ARGV[1], ARGV[2], ARGV[3]
local key = P .. 'schedule:' .. id
local read_schedule = reader_of({ creation_id = 'cid', revision = 'rev', due = 'due' })
local found = read_schedule(key)

if expected == '' then
  if found.creation_id then return SCHEDULE_CHANGED end
elseif not found.creation_id then
  return NOT_FOUND
elseif found.creation_id .. '.' .. found.revision .. '.' .. (found.due or '') ~= expected then
  return SCHEDULE_CHANGED
end

redis.call('HSET', key, unpack(ARGV, 4))
redis.call('HINCRBY', key, 'rev', 1)
redis.call('ZADD', P .. 'schedules', 0, id)
if due == '' then
  redis.call('HDEL', key, 'due')
  redis.call('ZREM', P .. 'due', id)
else
  redis.call('HSET', key, 'due', due)
  redis.call('ZADD', P .. 'due', due, id)
end
return DONE

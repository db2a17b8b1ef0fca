#!lua flags=no-writes
-- schedule_read.lua: schedules as they stand.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: schedule:<id> due (schedule_write.lua) runs:<id> (fire.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] 1: everything; 0: what a decision needs, which is not the job
-- then for each schedule one: id
-- Returns {now, the earliest moment of any schedule or 0, then for each: '' if there is none,
--   with 0 {creation id, revision, moment that it is due at or '', plan, bytes of its job,
--   how long after it its job expires and ends, ms or '' for never},
--   with 1 {fields and values of its HASH, its latest runs}}
--include clock fields

local P = KEYS[1]
local head = redis.call('ZRANGE', P .. 'due', 0, 0, 'WITHSCORES')
local read_schedule = reader_of({ creation_id = 'cid', revision = 'rev', due = 'due', plan = 'plan', expiry = 'xa', deadline = 'da' })
local answer = { clock_ms(ARGV[1]), tonumber(head[2] or 0) }

for at = 3, #ARGV do
  local key = P .. 'schedule:' .. ARGV[at]
  local row = ''
  if ARGV[2] == '1' then
    local fields = redis.call('HGETALL', key)
    if #fields > 0 then row = { fields, redis.call('LRANGE', P .. 'runs:' .. ARGV[at], 0, -1) } end
  else
    local found = read_schedule(key)
    if found.creation_id then
      row = { found.creation_id, found.revision, found.due or '', found.plan, redis.call('HSTRLEN', key, 'job'),
        found.expiry or '', found.deadline or '' }
    end
  end
  answer[#answer + 1] = row
end
return answer

#!lua flags=allow-oom
-- purge.lua: forgets terminal jobs whose retention has ended, and everything of theirs.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: r:<ulid> j:<ulid> h:<ulid> x:<ulid> o:<ulid> c:<ulid> usage done:<state> counts (end_attempt.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] the most jobs to forget in this call, at most 1000
-- Returns {forgotten, due of the next or 0}
--include clock tally unique terminal forget

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local most = tonumber(ARGV[2])
local forgotten, next_due = 0, 0

for state = 5, 8 do
  local key = P .. 'done:' .. state
  local ids = most > 0 and redis.call('ZRANGE', key, '-inf', now, 'BYSCORE', 'LIMIT', 0, most) or {}
  if #ids > 0 then
    forget(P, state, ids)
    forgotten = forgotten + #ids
    most = most - #ids
  end
  local head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  local at = head[2] and tonumber(head[2]) or 0
  if at > 0 and (next_due == 0 or at < next_due) then next_due = at end
end
publish_tally(P)
return { forgotten, next_due }

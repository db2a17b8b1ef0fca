#!lua flags=no-writes
-- standing.lua: where jobs stand, and what their place among those of the same state is decided by.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: r:<ulid> j:<ulid> (end_attempt.lua)
-- then for each job one: ulid
-- Returns for each job its state, 0 if there is none, and when it may be forgotten, 0 for a live one
--constants states

local P = KEYS[1]
local answer = {}
for at = 1, #ARGV do
  local ulid = ARGV[at]
  local state, purge_at = unpack(redis.call('HMGET', P .. 'j:' .. ulid, 's', 'pg'))
  state = tonumber(state or PENDING)
  if state == PENDING and redis.call('EXISTS', P .. 'r:' .. ulid) == 0 then state = 0 end
  answer[#answer + 1] = state
  answer[#answer + 1] = state >= SUCCEEDED and tonumber(purge_at) or 0
end
return answer

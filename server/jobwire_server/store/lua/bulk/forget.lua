#!lua flags=allow-oom
-- forget.lua: forgets jobs that have ended before their retention ends, each only if it is what the caller saw.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: r:<ulid> j:<ulid> h:<ulid> x:<ulid> o:<ulid> usage done:<state> counts (purge.lua)
-- then for each job two: ulid, revision that the caller saw; at most 1000 jobs
-- Returns for each job 1 forgotten | 0 left alone: it is not there, it is live, or it has changed
--constants states
--include fields tally state holder unique terminal forget

local P = KEYS[1]
local read_job = reader_of({ state = 's', revision = 'v' })
local answer, by_state, seen = {}, {}, {}
for at = 1, #ARGV, 2 do
  local ulid = ARGV[at]
  local job = read_job(P .. 'j:' .. ulid)
  local state = tonumber(job.state or FORGOTTEN)
  if state >= SUCCEEDED and not seen[ulid] and tonumber(job.revision) + 1 == tonumber(ARGV[at + 1]) then
    by_state[state] = by_state[state] or {}
    table.insert(by_state[state], ulid)
    seen[ulid] = true
    answer[#answer + 1] = 1
  else
    answer[#answer + 1] = 0
  end
end
for state, ulids in pairs(by_state) do forget(P, state, ulids) end
publish_tally(P)
return answer

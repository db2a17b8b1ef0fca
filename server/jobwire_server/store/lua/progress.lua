#!lua flags=allow-oom
-- progress.lua: RUNNING or CANCELLING: records a report, renews the lease, and tells of a cancellation.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: j:<ulid> leases (claim.lua)
-- ARGV[1] clock shift, ms
-- then for each item five: ulid, worker, fencing token, lease in ms, report ('' renews and records nothing)
-- Returns for each item {code, lease end, cancel deadline, cancel reason}: code 0 done | 1 not found | 2 lease lost;
--   the cancel deadline is 0 unless the job is CANCELLING
--include clock tally chunks

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local RUNNING, CANCELLING = 3, 4
local answer, leases = {}, {}

for at = 2, #ARGV, 5 do
  local ulid = ARGV[at]
  local key = P .. 'j:' .. ulid
  local job = redis.call('HMGET', key, 's', 't', 'w', 'v', 'cd', 'ca')
  local state = tonumber(job[1])
  if not state and redis.call('EXISTS', P .. 'r:' .. ulid) == 0 then
    answer[#answer + 1] = { 1 }
  elseif (state ~= RUNNING and state ~= CANCELLING) or job[2] ~= ARGV[at + 2] or job[3] ~= ARGV[at + 1] then
    answer[#answer + 1] = { 2 }
  else
    local lease_end = now + tonumber(ARGV[at + 3])
    if ARGV[at + 4] ~= '' then
      redis.call('HSET', key, 'v', job[4] + 1, 'g', ARGV[at + 4], 'u', now)
      tally.changed[#tally.changed + 1] = ulid
    end
    leases[#leases + 1] = lease_end
    leases[#leases + 1] = ulid
    if state == CANCELLING then
      answer[#answer + 1] = { 0, lease_end, tonumber(job[5] or now), job[6] or '' }
    else
      answer[#answer + 1] = { 0, lease_end, 0, '' }
    end
  end
end

if #leases > 0 then each_slice('ZADD', P .. 'leases', leases) end
publish_tally(P)
return answer

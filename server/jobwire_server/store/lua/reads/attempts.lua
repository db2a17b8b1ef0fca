#!lua flags=no-writes
-- attempts.lua: a page of the attempts of a job that have ended, newest first.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: r:<ulid> j:<ulid> h:<ulid> (end_attempt.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] ulid
-- ARGV[3] only attempts with a fencing token below this, '' all
-- ARGV[4] the most attempts   ARGV[5] the most bytes of them; a first one may have more
-- Returns {now, false} if there is no such job, or {now, fields and values of the HASH, more 0|1, then the entries}
--include clock history

local P, ulid = KEYS[1], ARGV[2]
local now = clock_ms(ARGV[1])
if redis.call('EXISTS', P .. 'r:' .. ulid) == 0 then return { now, false } end
local below, most, left = tonumber(ARGV[3]) or math.huge, tonumber(ARGV[4]), tonumber(ARGV[5])
local answer = { now, redis.call('HGETALL', P .. 'j:' .. ulid), 0 }
each_attempt(P .. 'h:' .. ulid, function(entry)
  if tonumber(string.match(entry, '^%d+ (%d+)')) >= below then return false end
  left = left - #entry
  if #answer - 3 == most or (left < 0 and #answer > 3) then
    answer[3] = 1
    return true
  end
  answer[#answer + 1] = entry
end)
return answer

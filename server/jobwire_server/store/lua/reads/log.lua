#!lua flags=no-writes
-- log.lua: a page of a queue's event log.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: log config (configure.lua)
-- ARGV[1] id of the last entry that was seen, '' for none: then only the end is told
-- ARGV[2] the most entries
-- Returns {code, last id, then the ULIDs of each entry, end to end}: DONE | LOG_COMPACTED it does not reach back to the entry | NO_LOG is kept
--constants codes

local P = KEYS[1]
if not redis.call('HGET', P .. 'config', 'log') then return { NO_LOG, '' } end
local key, after = P .. 'log', ARGV[1]
if after == '' then
  local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  return { DONE, newest and newest[1] or '0-0' }
end
if after == '0-0' then
  -- The very beginning is still there if nothing was ever dropped.
  if redis.call('EXISTS', key) == 1 then
    local info = redis.call('XINFO', 'STREAM', key)
    local facts = {}
    for i = 1, #info, 2 do facts[info[i]] = info[i + 1] end
    if facts['entries-added'] ~= facts['length'] then return { LOG_COMPACTED, '' } end
  end
elseif #redis.call('XRANGE', key, after, after) == 0 then
  return { LOG_COMPACTED, '' }
end
local answer = { DONE, after }
for _, entry in ipairs(redis.call('XRANGE', key, '(' .. after, '+', 'COUNT', tonumber(ARGV[2]))) do
  answer[2] = entry[1]
  answer[#answer + 1] = entry[2][2]
end
return answer

#!lua flags=no-writes
-- read.lua: jobs as they stand, all at one moment, the first of them at least.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: r:<ulid> j:<ulid> h:<ulid> x:<ulid> leases (end_attempt.lua) c:<ulid> (report.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] full 0|1|2|3: with 1 also the payload, the newest attempts, a long result and the checkpoint; with 0 the last attempt alone; with 2 no record
--   and no attempt; with 3 no record, the last attempt, and a long result
-- ARGV[3] bytes of records, results, checkpoints and histories after which no more jobs are read
-- then for each job one: ulid
-- Returns {now, then for each job nil if there is none, or {record, fields and values of the HASH, lease end or 0, history, long result,
--   checkpoint}}; shorter where the bytes did not do
--include clock history short_record

local P = KEYS[1]
local full, bare, outcome = ARGV[2] == '1', ARGV[2] == '2', ARGV[2] == '3'
local answer, bytes = { clock_ms(ARGV[1]) }, tonumber(ARGV[3])
for at = 4, #ARGV do
  if bytes <= 0 and at > 4 then break end
  local ulid = ARGV[at]
  local key = P .. 'r:' .. ulid
  local record
  if full then
    record = redis.call('GET', key)
  elseif bare or outcome then
    record = redis.call('EXISTS', key) == 1 and ''
  else
    record = short_record(key)
  end
  if not record then
    answer[#answer + 1] = false
  else
    local fields = redis.call('HGETALL', P .. 'j:' .. ulid)
    local lease = tonumber(redis.call('ZSCORE', P .. 'leases', ulid) or 0)
    local history, result, checkpoint = {}, '', ''
    if full then
      history = newest_attempts(P .. 'h:' .. ulid)
      result = redis.call('GET', P .. 'x:' .. ulid) or ''
      checkpoint = redis.call('GET', P .. 'c:' .. ulid) or ''
    elseif not bare then
      history = redis.call('LRANGE', P .. 'h:' .. ulid, -1, -1)
    end
    if outcome then result = redis.call('GET', P .. 'x:' .. ulid) or '' end
    bytes = bytes - #record - #result - #checkpoint
    for _, attempt in ipairs(history) do bytes = bytes - #attempt end
    for i = 2, #fields, 2 do bytes = bytes - #fields[i] end
    answer[#answer + 1] = { record, fields, lease, history, result, checkpoint }
  end
end
return answer

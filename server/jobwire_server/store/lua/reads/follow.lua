#!lua flags=no-writes
-- follow.lua: watched jobs as they stand, with the output behind a position, all at one moment, the first of them at least.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: r:<ulid> j:<ulid> h:<ulid> x:<ulid> leases (end_attempt.lua) c:<ulid> o:<ulid> (report.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] the bytes of output after which no more of a job is read in this call
-- ARGV[3] bytes of records, results, checkpoints and output after which no more jobs are read
-- then for each job three: ulid, 1 to leave out the record, position ('' no output | '<attempt>-<offset>' | '~<attempt>-<offset>' one
--   that may lie inside a piece)
-- Returns {now, then for each job nil if there is none, or {record, fields and values of the HASH, lease end or 0, history, long
--   result, checkpoint, more 0|1, then for each piece of output: id, kind and channel, content}}; shorter where the bytes did not do
--include clock history

local P = KEYS[1]
local most = tonumber(ARGV[2])
-- Pieces hold 64 KiB at most, so that a step of the read stays bounded.
local STEP = 16

local function add_output(row, key, position)
  local inside = string.sub(position, 1, 1) == '~'
  local from = inside and string.sub(position, 2) or position
  if inside then
    local before = redis.call('XREVRANGE', key, from, '-', 'COUNT', 1)[1]
    if before and before[1] ~= from then
      local n = #row
      row[n + 1], row[n + 2], row[n + 3] = before[1], before[2][1], before[2][2]
    end
  end
  local size = 0
  while true do
    local step = redis.call('XRANGE', key, from, '+', 'COUNT', STEP)
    for _, piece in ipairs(step) do
      if size >= most then
        row[7] = 1
        return
      end
      local n = #row
      row[n + 1], row[n + 2], row[n + 3] = piece[1], piece[2][1], piece[2][2]
      size = size + #piece[2][2]
      from = '(' .. piece[1]
    end
    if #step < STEP then return end
  end
end

local answer, bytes = { clock_ms(ARGV[1]) }, tonumber(ARGV[3])
for at = 4, #ARGV, 3 do
  if bytes <= 0 and at > 4 then break end
  local ulid = ARGV[at]
  local known, position = ARGV[at + 1] == '1', ARGV[at + 2]
  local there = known and redis.call('EXISTS', P .. 'r:' .. ulid) == 1
  local record = known and '' or redis.call('GET', P .. 'r:' .. ulid)
  if not record or (known and not there) then
    answer[#answer + 1] = false
  else
    local fields = redis.call('HGETALL', P .. 'j:' .. ulid)
    local lease = tonumber(redis.call('ZSCORE', P .. 'leases', ulid) or 0)
    local history, history_bytes = newest_attempts(P .. 'h:' .. ulid)
    local row = { record, fields, lease, history, redis.call('GET', P .. 'x:' .. ulid) or '',
      redis.call('GET', P .. 'c:' .. ulid) or '', 0 }
    if position ~= '' then add_output(row, P .. 'o:' .. ulid, position) end
    bytes = bytes - #record - #row[5] - #row[6] - history_bytes
    for i = 10, #row, 3 do bytes = bytes - #row[i] end
    answer[#answer + 1] = row
  end
end
return answer

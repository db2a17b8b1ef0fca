#!lua flags=allow-oom
-- report.lua: RUNNING or CANCELLING: records a report, output and a checkpoint, renews the lease, and reports a cancellation.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: j:<ulid> leases (claim.lua)
--           o:<ulid>  STREAM  output: '<attempt>-<offset of its first byte>' -> kind and channel ('t' text, 'b' bytes), content
--           c:<ulid>  STRING  the checkpoint; the field ck of j:<ulid> says that there is one
--           outputs   channel: the ULIDs of the jobs that wrote, end to end
--           written   ZSET    ulid of a job that keeps output -> when its retention is looked at, Unix ms
--           usage     HASH    output -> bytes of output that the queue's jobs keep
--           cancels:<worker>  SET (cancel.lua)
--           config    HASH    max_output -> the most of those (configure.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] the most bytes of output of a job   ARGV[3] the most of the queue, unless it is configured
-- then for each item eight and its pieces: ulid, worker, fencing token, lease in ms, report ('' renews and records none),
--   checkpoint ('' no change | '=' and the new one, which may be empty), offset of the output, number of its pieces, and as often:
--   kind and channel, content
-- Returns for each item {DONE, lease end, cancel deadline, cancel reason} | {NOT_FOUND} | {LEASE_LOST}
--   | {OUTPUT_GAP, expected offset} the output leaves a gap | {OUTPUT_FULL, limit} of the job | {QUEUE_OUTPUT_FULL, limit} of the queue;
--   the cancel deadline is 0 unless the job is CANCELLING
--constants states codes
--include clock numbers tally chunks output

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local now_text = text_of(now)
local answer, leases, written = {}, {}, {}

local at = 2 + 2
while at <= #ARGV do
  local ulid, pieces = ARGV[at], tonumber(ARGV[at + 7])
  local key, first = P .. 'j:' .. ulid, at + 8
  -- Locals and no table by names: include/fields.lua has the reason.
  local state, token, worker, revision, cancel_deadline, cancel_reason = unpack(redis.call('HMGET', key, 's', 't', 'w', 'v', 'cd', 'ca'))
  if not state and redis.call('EXISTS', P .. 'r:' .. ulid) == 0 then
    answer[#answer + 1] = { NOT_FOUND }
  elseif (state ~= RUNNING_TEXT and state ~= CANCELLING_TEXT) or token ~= ARGV[at + 2] or worker ~= ARGV[at + 1] then
    answer[#answer + 1] = { LEASE_LOST }
  else
    local refused = pieces > 0
      and write_output(P, ulid, tonumber(ARGV[at + 6]), first, pieces, tonumber(ARGV[2]), tonumber(ARGV[3]), now)
    if refused then
      answer[#answer + 1] = refused
    else
      local lease_end = now + ARGV[at + 3]
      if ARGV[at + 4] ~= '' then
        redis.call('HSET', key, 'v', successor(revision), 'g', ARGV[at + 4], 'u', now_text)
      end
      if ARGV[at + 4] ~= '' then tally.changed[#tally.changed + 1] = ulid end
      if ARGV[at + 5] == '=' then
        redis.call('UNLINK', P .. 'c:' .. ulid)
        redis.call('HDEL', key, 'ck')
      elseif ARGV[at + 5] ~= '' then
        redis.call('SET', P .. 'c:' .. ulid, string.sub(ARGV[at + 5], 2))
        redis.call('HSET', key, 'ck', '1', 'y', '1')
      end
      if pieces > 0 then written[#written + 1] = ulid end
      leases[#leases + 1] = text_of(lease_end)
      leases[#leases + 1] = ulid
      if state == CANCELLING_TEXT then
        -- This answer tells the worker.
        redis.call('SREM', P .. 'cancels:' .. worker, ulid)
        answer[#answer + 1] = { DONE, lease_end, tonumber(cancel_deadline or now), cancel_reason or '' }
      else
        answer[#answer + 1] = { DONE, lease_end, 0, '' }
      end
    end
  end
  at = first + 2 * pieces
end

if #leases > 0 then each_slice('ZADD', P .. 'leases', leases) end
publish_tally(P)
if #written > 0 then redis.pcall('SPUBLISH', P .. 'outputs', table.concat(written)) end
return answer

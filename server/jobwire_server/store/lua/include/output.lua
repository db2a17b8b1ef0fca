-- Output: the STREAM o:<ulid>. In the job's HASH: oe '<attempt>-<end>' how far the latest attempt that wrote has come, ob the bytes
-- that are kept, ol the job's own limit, ot 1 where the oldest goes above it, of '<attempt>-<offset>' the position behind the last byte
-- that was dropped, if any was. The ZSET written holds the jobs that keep output (trim.lua).

-- Drops the oldest pieces until the job keeps no more than `most` bytes; returns what it keeps and the position behind the last byte that went.
local function trim_output(key, kept, most)
  local first
  while kept > most do
    local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 2)
    if not oldest[2] then break end
    kept = kept - #oldest[1][2][2]
    local attempt, offset = string.match(oldest[1][1], '^(%d+)-(%d+)$')
    -- Not where the next piece begins: that may be the next attempt, and a reader that has all of this one misses nothing.
    first = attempt .. '-' .. text_of(offset + #oldest[1][2][2])
    redis.call('XTRIM', key, 'MINID', oldest[2][1])
  end
  return kept, first
end

-- Returns `skip`, or as much more as keeps text from being cut within a character.
local function whole_character(kind, content, skip)
  while skip > 0 and skip < #content and string.sub(kind, 1, 1) == 't' do
    local byte = string.byte(content, skip + 1)
    if byte < 128 or byte > 191 then break end
    skip = skip + 1
  end
  return skip
end

-- Appends pieces ARGV[first], ARGV[first + 1], ... that begin at `offset` of the running attempt. What was written before is not written
-- again. Returns nil, or the refusal: {OUTPUT_GAP, expected offset} | {OUTPUT_FULL, limit of the job} | {QUEUE_OUTPUT_FULL, limit of the
-- queue}; nothing is written then.
local function write_output(prefix, ulid, offset, first, pieces, job_most, queue_most, now)
  local key = prefix .. 'j:' .. ulid
  local attempt, end_position, kept, own_most, drops_oldest = unpack(redis.call('HMGET', key, 'n', 'oe', 'ob', 'ol', 'ot'))
  local reached = 0
  local last_attempt, last_end = string.match(end_position or '', '^(%d+)-(%d+)$')
  if last_attempt == attempt then reached = tonumber(last_end) end
  if offset > reached then return { OUTPUT_GAP, reached } end
  local size = 0
  for i = 1, pieces do size = size + #ARGV[first + 2 * i - 1] end
  local fresh = offset + size - reached
  if fresh <= 0 then return nil end

  kept = tonumber(kept or 0)
  local most = own_most and math.min(tonumber(own_most), job_most) or job_most
  if kept + fresh > most and drops_oldest ~= '1' then return { OUTPUT_FULL, most } end
  local queue_limit = redis.call('HGET', prefix .. 'config', 'max_output')
  queue_limit = queue_limit and tonumber(queue_limit) > 0 and tonumber(queue_limit) or queue_most
  -- A job that drops its oldest grows by no more than it still may keep.
  if tonumber(redis.call('HGET', prefix .. 'usage', 'output') or 0) + math.min(fresh, most - kept) > queue_limit then
    return { QUEUE_OUTPUT_FULL, queue_limit }
  end

  local stream, at, first_kept = prefix .. 'o:' .. ulid, offset, nil
  local written, start = fresh, reached
  if fresh > most then
    -- More at once than the job keeps: what would be dropped right away is not written at all.
    redis.call('UNLINK', stream)
    written, start = 0, offset + size - most
  end
  for i = 1, pieces do
    local kind, content = ARGV[first + 2 * i - 2], ARGV[first + 2 * i - 1]
    local skip = math.max(0, start - at)
    if start > reached then
      skip = whole_character(kind, content, skip)
      if skip < #content then
        written = written + #content - skip
        first_kept = first_kept or at + skip
      end
    end
    if skip < #content then
      redis.call('XADD', stream, attempt .. '-' .. text_of(at + skip), kind,
        skip > 0 and string.sub(content, skip + 1) or content)
    end
    at = at + #content
  end
  if kept == 0 then redis.call('ZADD', prefix .. 'written', 'NX', text_of(now), ulid) end
  local total, oldest
  if start > reached then
    total, oldest = written, attempt .. '-' .. text_of(first_kept or at)
  else
    total, oldest = trim_output(stream, kept + fresh, most)
  end
  redis.call('HSET', key, 'oe', attempt .. '-' .. text_of(at), 'ob', text_of(total))
  if oldest then redis.call('HSET', key, 'of', oldest) end
  redis.call('HINCRBY', prefix .. 'usage', 'output', text_of(total - kept))
  return nil
end

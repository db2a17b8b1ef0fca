-- What a claim reads and notes of each job.

-- Records read in one go, before their sizes are known.
local RECORDS_AT_ONCE = 32

-- Returns the records of the jobs from index `first` on, as many as are read in one go, and whether none of them has a HASH: most
-- jobs come here for the first time, and then there is nothing to read of each.
local function records_from(prefix, ulids, first)
  local records, hashes = {}, {}
  for i = first, math.min(first + RECORDS_AT_ONCE - 1, #ulids) do
    records[#records + 1] = prefix .. 'r:' .. ulids[i]
    hashes[#hashes + 1] = prefix .. 'j:' .. ulids[i]
  end
  return redis.call('MGET', unpack(records)), redis.call('EXISTS', unpack(hashes)) == 0
end

-- Returns the number of an attempt as it is answered.
local function attempt_told(prefix, ulid, attempt, has_checkpoint)
  return has_checkpoint and { attempt, redis.call('GET', prefix .. 'c:' .. ulid) or '' } or attempt
end

-- Noted with the job, so that its end need not measure the record; jobs of one batch are often of one size.
local size_texts = {}

local function size_text(size)
  local known = size_texts[size]
  if not known then
    known = text_of(size)
    size_texts[size] = known
  end
  return known
end

#!lua flags=no-writes
-- queue.lua: a queue as it stands.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: config usage counts totals ready l:<route> z:<route> r:<ulid> j:<ulid> samples (tick.lua)
-- ARGV[1] clock shift, ms
-- ARGV[2] detail 0|1: with 1 also the oldest ready job and the samples
-- Returns {now, paused 0|1, counts as fields and values, totals as fields and values,
--   since when the oldest ready job is ready in Unix ms or 0, its record where only that tells, samples, config as fields and values, usage as fields and values}
--constants states
--include clock

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local paused = redis.call('HGET', P .. 'config', 'paused') == '1' and 1 or 0
local counts, totals = redis.call('HGETALL', P .. 'counts'), redis.call('HGETALL', P .. 'totals')
local oldest, since, record = nil, 0, ''
-- The most entries of one route to look at for one that is not stale.
local LOOK = 32

local function consider(ids)
  for _, ulid in ipairs(ids) do
    if oldest and ulid >= oldest then return end
    local state, ready_since = unpack(redis.call('HMGET', P .. 'j:' .. ulid, 's', 'ps'))
    if not state or state == PENDING_TEXT then
      local found = redis.call('GET', P .. 'r:' .. ulid)
      if found then
        oldest, since, record = ulid, tonumber(ready_since or 0), ready_since and '' or found
        return
      end
    end
  end
end

local samples = {}
if ARGV[2] == '1' then
  for _, route in ipairs(redis.call('HKEYS', P .. 'ready')) do
    consider(redis.call('LRANGE', P .. 'l:' .. route, 0, LOOK))
    consider(redis.call('ZRANGE', P .. 'z:' .. route, 0, LOOK))
  end
  samples = redis.call('LRANGE', P .. 'samples', 0, -1)
end
local config, usage = redis.call('HGETALL', P .. 'config'), redis.call('HGETALL', P .. 'usage')
return { now, paused, counts, totals, since, record, samples, config, usage }

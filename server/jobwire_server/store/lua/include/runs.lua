-- Runs of a schedule: the LIST runs:<id>, newest first, each '<moment> <submitted> <ulid> <1 if triggered, else 0>'. In the HASH of the
-- schedule: n jobs submitted, k moments skipped because of an earlier job, m moments that were missed, last the ULID of the job of the
-- latest moment.
local RECENT = 10

local function note_run(prefix, id, moment, now, ulid, triggered)
  local runs = prefix .. 'runs:' .. id
  redis.call('LPUSH', runs, string.format('%d %d %s %d', moment, now, ulid, triggered and 1 or 0))
  redis.call('LTRIM', runs, 0, RECENT - 1)
  redis.call('HINCRBY', prefix .. 'schedule:' .. id, 'n', 1)
end

local function was_noted(prefix, id, ulid)
  for _, run in ipairs(redis.call('LRANGE', prefix .. 'runs:' .. id, 0, -1)) do
    if string.find(run, ulid, 1, true) then return true end
  end
  return false
end

-- Returns the jobs of earlier moments that have not ended, as far back as the latest runs reach.
local function unfinished_runs(prefix, id)
  local last = redis.call('HGET', prefix .. 'schedule:' .. id, 'last')
  local ulids, seen, found = { last or nil }, {}, {}
  for _, run in ipairs(redis.call('LRANGE', prefix .. 'runs:' .. id, 0, -1)) do
    local ulid, triggered = string.match(run, '^%d+ %d+ (%w+) (%d)$')
    if triggered == '0' then ulids[#ulids + 1] = ulid end
  end
  for _, ulid in ipairs(ulids) do
    if not seen[ulid] then
      seen[ulid] = true
      local state = state_of(prefix, ulid, redis.call('HGET', prefix .. 'j:' .. ulid, 's'))
      if state ~= FORGOTTEN and state < SUCCEEDED then found[#found + 1] = ulid end
    end
  end
  return found
end

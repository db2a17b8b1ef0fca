-- Gathers what a batch changes in the counters, and writes it once: counts (state -> jobs, exact), totals
-- (name -> events since the queue began), and the channel events (the ULIDs of the jobs that changed, end to end). Where the queue keeps
-- an event log (config log = how many entries), the event also goes into the STREAM log, and carries the id of its entry between two #.
-- Behind the ULIDs stands a + if none of these jobs has ended: most of those who listen wait for ends.
-- Also the bytes of the queue (HASH usage): live -> records of jobs that have not ended, ended -> records and results of those that have.
local tally = { counts = {}, totals = {}, changed = {}, live = 0, ended = 0, none_ends = false }

local function moved(ulid, from, to)
  if from ~= to then
    if from then tally.counts[from] = (tally.counts[from] or 0) - 1 end
    if to then tally.counts[to] = (tally.counts[to] or 0) + 1 end
  end
  tally.changed[#tally.changed + 1] = ulid
end

-- The same for a number of jobs whose ULIDs the caller noted itself; without `to` they are gone.
local function moved_many(count, from, to)
  tally.counts[from] = (tally.counts[from] or 0) - count
  if to then tally.counts[to] = (tally.counts[to] or 0) + count end
end

local function total(name, by)
  tally.totals[name] = (tally.totals[name] or 0) + (by or 1)
end

local function weigh(live, ended)
  tally.live = tally.live + live
  tally.ended = tally.ended + ended
end

local function publish_tally(prefix)
  for state, by in pairs(tally.counts) do
    if by ~= 0 then redis.call('HINCRBY', prefix .. 'counts', state, by) end
  end
  for name, by in pairs(tally.totals) do
    redis.call('HINCRBY', prefix .. 'totals', name, by)
  end
  if tally.live ~= 0 then redis.call('HINCRBY', prefix .. 'usage', 'live', string.format('%d', tally.live)) end
  if tally.ended ~= 0 then redis.call('HINCRBY', prefix .. 'usage', 'ended', string.format('%d', tally.ended)) end
  if #tally.changed > 0 then
    local ulids = table.concat(tally.changed)
    local kept = redis.call('HGET', prefix .. 'config', 'log')
    if kept then
      local id = redis.call('XADD', prefix .. 'log', 'MAXLEN', '~', kept, '*', 'u', ulids)
      ulids = '#' .. id .. '#' .. ulids
    end
    if tally.none_ends then ulids = ulids .. '+' end
    redis.pcall('SPUBLISH', prefix .. 'events', ulids)
  end
end

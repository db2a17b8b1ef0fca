-- Tells servers of jobs that were cancelled or taken back while a worker held them. Channel signals: their ULIDs, end to end. Channel
-- cancels: the workers that have cancellations to hear of, by spaces; the SET cancels:<worker> holds the ULIDs until the worker was told.
local signalled, told_workers, is_told = {}, {}, {}

local function signal(ulid)
  signalled[#signalled + 1] = ulid
end

local function signal_cancel(prefix, worker, ulid)
  signal(ulid)
  redis.call('SADD', prefix .. 'cancels:' .. worker, ulid)
  if not is_told[worker] then
    is_told[worker] = true
    told_workers[#told_workers + 1] = worker
  end
end

local function publish_signals(prefix)
  if #signalled > 0 then redis.pcall('SPUBLISH', prefix .. 'signals', table.concat(signalled)) end
  if #told_workers > 0 then redis.pcall('SPUBLISH', prefix .. 'cancels', table.concat(told_workers, ' ')) end
end

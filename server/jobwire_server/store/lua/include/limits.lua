-- The limits of a queue on new jobs: how many may wait (SCHEDULED and PENDING), and the bytes of records of live jobs; 0 for no limit.
local most_waiting, most_live, waiting, live = 0, 0, 0, 0
local all_fit = true

-- Looks whether a whole batch fits, with what this call has done already; then nobody asks again.
local function measure_load(prefix, jobs, bytes, max_waiting, max_live)
  if max_waiting == 0 and max_live == 0 then return end
  local scheduled, pending = unpack(redis.call('HMGET', prefix .. 'counts', SCHEDULED, PENDING))
  most_waiting, most_live = max_waiting, max_live
  waiting = (scheduled or 0) + (pending or 0) + (tally.counts[SCHEDULED] or 0) + (tally.counts[PENDING] or 0)
  live = (redis.call('HGET', prefix .. 'usage', 'live') or 0) + tally.live
  all_fit = (max_waiting == 0 or waiting + jobs <= max_waiting) and (max_live == 0 or live + bytes <= max_live)
end

-- Counts one job in: returns nil, or the refusal. `replaced` is a job that leaves in its favour, if any.
local function count_in(prefix, record, replaced)
  if all_fit then return nil end
  local left = replaced and record_bytes(prefix, replaced.ulid) or 0
  local waiting_then, live_then = waiting + (replaced and 0 or 1), live + #record - left
  if most_waiting > 0 and waiting_then > most_waiting then return { TOO_MANY_PENDING, waiting } end
  if most_live > 0 and live_then > most_live then return { TOO_MANY_BYTES, live } end
  waiting, live = waiting_then, live_then
  return nil
end

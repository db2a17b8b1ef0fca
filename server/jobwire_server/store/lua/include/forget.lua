-- Forgetting ended jobs.
local read_ended = reader_of({ bytes = 'b', short_result = 'r', long_result = 'x', output_bytes = 'ob' })

-- Returns the bytes of an ended job's record and result.
local function ended_bytes(prefix, ulid, job)
  local result = job.long_result and redis.call('STRLEN', prefix .. 'x:' .. ulid) or #(job.short_result or '')
  return record_bytes(prefix, ulid, job.bytes) + result
end

-- Forgets jobs that ended in one state, with everything of theirs. At most 1000 at a time, because Lua's stack holds some 8000 values.
local function forget(prefix, state, ids)
  if #ids == 0 then return end
  local doomed, size, output, wrote = {}, 0, 0, {}
  for _, ulid in ipairs(ids) do
    local job = read_ended(prefix .. 'j:' .. ulid)
    size = size + ended_bytes(prefix, ulid, job)
    output = output + (job.output_bytes or 0)
    if job.output_bytes then wrote[#wrote + 1] = ulid end
    for _, kind in ipairs({ 'r:', 'j:', 'h:', 'x:', 'o:', 'c:' }) do doomed[#doomed + 1] = prefix .. kind .. ulid end
  end
  redis.call('UNLINK', unpack(doomed))
  redis.call('ZREM', prefix .. 'done:' .. state, unpack(ids))
  if #wrote > 0 then redis.call('ZREM', prefix .. 'written', unpack(wrote)) end
  moved_many(#ids, state, nil)
  weigh(0, -size)
  if output > 0 then redis.call('HINCRBY', prefix .. 'usage', 'output', string.format('%d', -output)) end
end

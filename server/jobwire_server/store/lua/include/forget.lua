-- Forgets jobs that have ended in one state, with everything of theirs. At most 1000 at a time, because Lua's stack holds some 8000 values.
local function forget(prefix, state, ulids)
  if #ulids == 0 then return end
  if redis.call('HEXISTS', prefix .. 'usage', 'output') == 1 then
    for _, ulid in ipairs(ulids) do
      local kept = redis.call('HGET', prefix .. 'j:' .. ulid, 'ob')
      if kept then redis.call('HINCRBY', prefix .. 'usage', 'output', '-' .. kept) end
    end
  end
  local doomed = {}
  for _, ulid in ipairs(ulids) do
    for _, kind in ipairs({ 'r:', 'j:', 'h:', 'x:', 'o:' }) do doomed[#doomed + 1] = prefix .. kind .. ulid end
  end
  redis.call('UNLINK', unpack(doomed))
  redis.call('ZREM', prefix .. 'done:' .. state, unpack(ulids))
  moved_many(#ulids, state, nil)
end

-- The attempts of a job that have ended: the LIST h:<ulid>, oldest first (end_attempt.lua).
local HISTORY_BYTES, HISTORY_STEP = 524288, 10

-- Calls a function with each entry, the newest first, until it returns true.
local function each_attempt(key, look)
  local last = -1
  while true do
    local part = redis.call('LRANGE', key, last - HISTORY_STEP + 1, last)
    for i = #part, 1, -1 do
      if look(part[i]) then return end
    end
    if #part < HISTORY_STEP then return end
    last = last - HISTORY_STEP
  end
end

-- Returns the newest entries, oldest of them first, one at least and no more than an answer may hold; and their bytes.
local function newest_attempts(key)
  local found, bytes = {}, 0
  each_attempt(key, function(entry)
    if #found > 0 and bytes + #entry > HISTORY_BYTES then return true end
    found[#found + 1], bytes = entry, bytes + #entry
  end)
  local size = #found
  for i = 1, math.floor(size / 2) do found[i], found[size + 1 - i] = found[size + 1 - i], found[i] end
  return found, bytes
end

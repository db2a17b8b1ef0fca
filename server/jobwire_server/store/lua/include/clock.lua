-- The one clock: the store's own, moved by the tests' shift (0 in production).
local function clock_ms(shift)
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(shift)
end

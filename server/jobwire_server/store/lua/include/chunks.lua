-- Variadic commands in slices, because Lua's stack holds some 8000 values.
local SLICE = 4000

local function each_slice(command, key, args)
  for from = 1, #args, SLICE do
    redis.call(command, key, unpack(args, from, math.min(from + SLICE - 1, #args)))
  end
end

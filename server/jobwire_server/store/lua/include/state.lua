-- Returns the state of a job, given what field s of its HASH holds: a job without a HASH is PENDING, unless it is forgotten.
local function state_of(prefix, ulid, noted)
  return tonumber(noted) or (redis.call('EXISTS', prefix .. 'r:' .. ulid) == 1 and PENDING or FORGOTTEN)
end

-- A record without its payload, which is left where it is: a list of jobs in short would carry megabytes that nobody reads.
local WHOLE_BYTES = 1024
-- Tags of JobSpec's first fields: operation, payload. Servers write fields in the order of their numbers.
local OPERATION, PAYLOAD = 10, 18

-- Returns the number that begins at an index, and the index behind it.
local function varint(bytes, at)
  local value, factor = 0, 1
  while true do
    local byte = string.byte(bytes, at) or 0
    value = value + byte % 128 * factor
    at = at + 1
    if byte < 128 then return value, at end
    factor = factor * 128
  end
end

-- Returns the record under a key without its payload, whole where it is small or begins otherwise; false if there is none.
local function short_record(key)
  local size = redis.call('STRLEN', key)
  if size <= WHOLE_BYTES then return redis.call('GET', key) end
  local head = redis.call('GETRANGE', key, 0, 255)
  local at = 1
  if string.byte(head, 1) == OPERATION then
    local length, behind = varint(head, 2)
    at = behind + length
  end
  if string.byte(head, at) ~= PAYLOAD then return redis.call('GET', key) end
  local length, behind = varint(head, at + 1)
  -- Offsets count from 0, indexes from 1.
  return string.sub(head, 1, at - 1) .. redis.call('GETRANGE', key, behind - 1 + length, size - 1)
end

-- Returns the extra of a schedule's job (submit.lua) with the moments at which that job expires and ends, Unix ms, '' for never.
local function extra_with_ends(extra, expiry, deadline)
  if expiry == '' and deadline == '' then return extra end
  local item = extra == '' and {} or cjson.decode(extra)
  local fields = item.f or item
  local size = #fields
  if expiry ~= '' then fields[size + 1], fields[size + 2] = 'ex', expiry end
  size = #fields
  if deadline ~= '' then fields[size + 1], fields[size + 2], fields[size + 3], fields[size + 4] = 'y', '1', 'dl', deadline end
  return cjson.encode(item)
end

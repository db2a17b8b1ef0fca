-- Reads fields of a HASH by name. `fields` gives each a name: { state = 's', token = 't' }. Returns a function from a key to a table by
-- those names, false where the HASH lacks the field. Scripts on the path of every job (claim, succeed, report, submit) read into locals
-- instead: the table adds 1 to 1.5 microseconds to a read of 2, a tenth of such a script's time for a job.
local function reader_of(fields)
  local names, wanted = {}, {}
  for name, field in pairs(fields) do
    names[#names + 1], wanted[#wanted + 1] = name, field
  end
  return function(key)
    local values, found = redis.call('HMGET', key, unpack(wanted)), {}
    for i, name in ipairs(names) do found[name] = values[i] end
    return found
  end
end

-- What claim.lua is asked for: how much each worker wants off which routes.

-- Reads the arguments from `at` to `last`. Returns the sets, each a list of routes, and the requests: worker, most jobs, lease in ms, routes,
-- most bytes (nil: not said).
local function read_requests(at, count, last)
  local sets, requests = {}, {}
  for s = 1, count do
    local size = tonumber(ARGV[at])
    local routes = {}
    for i = 1, size do routes[i] = ARGV[at + i] end
    sets[s] = routes
    at = at + size + 1
  end
  for from = at, last, 4 do
    local most, bytes = tonumber(ARGV[from + 1]), nil
    if not most then most, bytes = string.match(ARGV[from + 1], '^(%d+)/(%d+)$') end
    requests[#requests + 1] = {
      worker = ARGV[from],
      most = tonumber(most),
      bytes = tonumber(bytes),
      lease = tonumber(ARGV[from + 2]),
      routes = sets[tonumber(ARGV[from + 3])],
    }
  end
  return sets, requests
end

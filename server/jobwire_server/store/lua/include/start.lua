-- Returns when a job becomes ready, Unix ms, from how a caller says it: '' at once, '<ms>' at that moment, '+<ms>' so long from now.
local function start_ms(start, now)
  if start == '' then return 0 end
  if string.sub(start, 1, 1) == '+' then return now + tonumber(string.sub(start, 2)) end
  return tonumber(start)
end

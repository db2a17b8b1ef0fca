#!lua flags=no-writes
-- known.lua: which of these submissions were accepted before, whatever has changed since: they get their first answer.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: r:<ulid> j:<ulid> q:<request> (submit.lua)
-- ARGV[1] clock shift, ms
-- then for each two: ulid, extra (as for submit.lua)
-- Returns for each false if it was not accepted, or {0 | 1 | 2, ...} as submit.lua answers
--include clock identity

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local OBJECT = string.byte('{')
local answer = {}
for at = 2, #ARGV, 2 do
  local extra = ARGV[at + 1]
  local item = extra ~= '' and string.byte(extra) == OBJECT and cjson.decode(extra)
  answer[#answer + 1] = known_as(P, item, ARGV[at], now) or false
end
return answer

#!lua flags=no-writes
-- known.lua: finds submissions that were accepted before, whatever has changed since: they get their first answer.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue: r:<ulid> j:<ulid> q:<request> u:<name> (submit.lua)
-- ARGV[1] clock shift, ms
-- then for each two: ulid, extra (as for submit.lua)
-- Returns for each false if it was not accepted, or {SAME_ID | SAME_REQUEST | REQUEST_ID_REUSED, ...} as submit.lua answers;
--   {KEY_HOLDER, ...} if the holder of its unique key is the answer now as it was then: of that answer nothing is kept
--constants states codes
--include clock state identity holder

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local REFUSE, REPLACE = 2, 3
local OBJECT = string.byte('{')

local function answered_with_holder(item)
  if not item or not item.u or item.c == REFUSE or item.c == REPLACE then return nil end
  local holder = key_holder(P, string.sub(item.u, 2), now)
  return holder and { KEY_HOLDER, holder.state, holder.ulid }
end

local answer = {}
for at = 2, #ARGV, 2 do
  local extra = ARGV[at + 1]
  local item = extra ~= '' and string.byte(extra) == OBJECT and cjson.decode(extra)
  answer[#answer + 1] = known_as(P, item, ARGV[at], now) or answered_with_holder(item) or false
end
return answer

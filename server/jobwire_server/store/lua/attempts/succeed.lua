#!lua flags=allow-oom
-- succeed.lua: RUNNING or CANCELLING -> SUCCEEDED for each item whose caller holds the lease.
-- KEYS[1] jw:{<queue>}:          prefix of every key of the queue:
--           j:<ulid> leases held:<worker> timers counts totals (claim.lua)
--           x:<ulid>     STRING  a result too long for the HASH
--           c:<ulid>     STRING  the checkpoint, which goes
--           cancels:<worker>  SET (cancel.lua)
--           h:<ulid>     LIST    attempts that ended (end_attempt.lua)
--           done:5       ZSET    ulid -> when it may be forgotten, Unix ms
-- ARGV[1] clock shift, ms
-- ARGV[2] retention of jobs that have none of their own, ms
-- then for each item four: ulid, worker, fencing token, result ('' for an empty one)
-- Returns for each item DONE now, or {code, state, due, 1}: DONE what the caller was answered before for the end of this attempt |
--   NOT_FOUND | LEASE_LOST
--constants states codes
--include clock numbers tally chunks state holder unique recorded

local P = KEYS[1]
local now = clock_ms(ARGV[1])
local now_text, usual_purge_at = text_of(now), text_of(now + ARGV[2])
local changed = tally.changed
local counted = { [RUNNING] = 0, [CANCELLING] = 0 }
-- The longest value that leaves a HASH in its compact encoding.
local SHORT = 64
local answer = {}
local done, leases, held, timers = {}, {}, {}, {}
local live, ended = 0, 0

for at = 3, #ARGV, 4 do
  local ulid, worker = ARGV[at], ARGV[at + 1]
  local key = P .. 'j:' .. ulid
  -- Locals and no table by names: include/fields.lua has the reason.
  local state, token, holder, revision, bytes, has_rare = unpack(redis.call('HMGET', key, 's', 't', 'w', 'v', 'b', 'y'))
  state = tonumber(state)
  if not state then
    answer[#answer + 1] = { redis.call('EXISTS', P .. 'r:' .. ulid) == 1 and LEASE_LOST or NOT_FOUND }
  elseif token ~= ARGV[at + 2] or holder ~= worker then
    answer[#answer + 1] = recorded_end(P, ulid, ARGV[at + 2], worker) or { LEASE_LOST }
  elseif state ~= RUNNING and state ~= CANCELLING then
    answer[#answer + 1] = state ~= SUCCEEDED and recorded_end(P, ulid, ARGV[at + 2], worker)
      or { DONE, state, state == SCHEDULED and tonumber(redis.call('HGET', key, 'd')) or 0, 1 }
  else
    local result = ARGV[at + 3]
    -- Most jobs have none of these, and every field that is looked for costs.
    local timeout, deadline, own_retention, unique, checkpoint
    if has_rare then
      timeout, deadline, own_retention, unique, checkpoint = unpack(redis.call('HMGET', key, 'xt', 'dl', 'kp', 'uk', 'ck'))
    end
    local purge_at = own_retention and text_of(now + own_retention) or usual_purge_at
    -- A claim of a former release did not note the size of the record.
    local size = bytes or redis.call('STRLEN', P .. 'r:' .. ulid)
    live, ended = live + size, ended + size + #result
    if #result > SHORT then
      redis.call('SET', P .. 'x:' .. ulid, result)
      redis.call('HSET', key, 's', SUCCEEDED_TEXT, 'v', successor(revision), 'e', now_text, 'pg', purge_at, 'x', '1')
    elseif result ~= '' then
      redis.call('HSET', key, 's', SUCCEEDED_TEXT, 'v', successor(revision), 'e', now_text, 'pg', purge_at, 'r', result)
    else
      redis.call('HSET', key, 's', SUCCEEDED_TEXT, 'v', successor(revision), 'e', now_text, 'pg', purge_at)
    end
    if unique then free_key(P, unique, ulid) end
    if timeout then timers[#timers + 1] = 't' .. ulid end
    if deadline then timers[#timers + 1] = 'd' .. ulid end
    if checkpoint then
      redis.call('UNLINK', P .. 'c:' .. ulid)
      redis.call('HDEL', key, 'ck')
    end
    if state == CANCELLING then
      timers[#timers + 1] = 'c' .. ulid
      redis.call('SREM', P .. 'cancels:' .. worker, ulid)
    end
    done[#done + 1] = purge_at
    done[#done + 1] = ulid
    leases[#leases + 1] = ulid
    local mine = held[worker]
    if not mine then
      mine = {}
      held[worker] = mine
    end
    mine[#mine + 1] = ulid
    changed[#changed + 1] = ulid
    counted[state] = counted[state] + 1
    answer[#answer + 1] = DONE
  end
end

if #leases > 0 then
  each_slice('ZADD', P .. 'done:' .. SUCCEEDED, done)
  each_slice('ZREM', P .. 'leases', leases)
  for worker, mine in pairs(held) do each_slice('SREM', P .. 'held:' .. worker, mine) end
  if #timers > 0 then each_slice('ZREM', P .. 'timers', timers) end
  for state, count in pairs(counted) do moved_many(count, state, SUCCEEDED) end
  total('succeeded', #leases)
  weigh(-live, ended)
  publish_tally(P)
end
return answer

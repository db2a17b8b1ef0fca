-- Unique keys: the STRING u:<name> -> scope, ULID of the job that holds it, and for scope 't' the end in Unix ms. Scopes: 'p' until
-- the job is first handed to a worker, 'u' until it ends, 't' until a moment. Whether an entry still holds is judged by the state of
-- its job whenever somebody asks, so none can be left locked. A job's field uk is its scope ('p' or 'u') and the name, end to end.

-- Returns nil if the key is free, or its holder: ulid, state (0 for one that is forgotten), started true or false.
local function key_holder(prefix, name, now)
  local entry = redis.call('GET', prefix .. 'u:' .. name)
  if not entry then return nil end
  local scope, ulid = string.sub(entry, 1, 1), string.sub(entry, 2, 27)
  if scope == 't' and tonumber(string.sub(entry, 28)) <= now then return nil end
  local job = redis.call('HMGET', prefix .. 'j:' .. ulid, 's', 'n')
  local state = tonumber(job[1]) or (redis.call('EXISTS', prefix .. 'r:' .. ulid) == 1 and 2 or 0)
  local started = (job[2] or '0') ~= '0'
  if scope == 'u' and (state == 0 or state >= 5) then return nil end
  if scope == 'p' and (state == 0 or state > 2 or started) then return nil end
  return { ulid = ulid, state = state, started = started }
end

-- Gives the key to a job; the caller has seen that it may have it. The period is in ms, for scope 't' alone.
local function take_key(prefix, unique, ulid, now, period)
  local scope, key = string.sub(unique, 1, 1), prefix .. 'u:' .. string.sub(unique, 2)
  if scope == 't' then
    redis.call('SET', key, scope .. ulid .. string.format('%d', now + period), 'PX', period)
  else
    redis.call('SET', key, scope .. ulid)
  end
end

-- For a job that goes back from its end, with its field uk and n: returns nil if it has its key again or needs none, or the holder.
local function take_key_again(prefix, unique, ulid, attempts, now)
  if string.sub(unique, 1, 1) == 'p' and (attempts or '0') ~= '0' then return nil end
  local holder = key_holder(prefix, string.sub(unique, 2), now)
  if holder and holder.ulid ~= ulid then return holder end
  take_key(prefix, unique, ulid, now)
  return nil
end

-- Frees the key of a job that has ended, unless another job has it by now.
local function free_key(prefix, unique, ulid)
  local key = prefix .. 'u:' .. string.sub(unique, 2)
  if redis.call('GET', key) == string.sub(unique, 1, 1) .. ulid then redis.call('DEL', key) end
end

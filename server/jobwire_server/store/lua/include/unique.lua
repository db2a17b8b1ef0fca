-- Taking and freeing unique keys; include/holder.lua describes their entries.

-- Gives the key to a job; the caller has checked that it may have it. The period is in ms, for scope 't' alone.
local function take_key(prefix, unique, ulid, now, period)
  local scope, key = string.sub(unique, 1, 1), prefix .. 'u:' .. string.sub(unique, 2)
  if scope == 't' then
    redis.call('SET', key, scope .. ulid .. string.format('%d', now + period), 'PX', period)
  else
    redis.call('SET', key, scope .. ulid)
  end
end

-- For a job that is redriven, with its fields uk and n: returns nil if it has its key again or needs none, or else the holder.
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

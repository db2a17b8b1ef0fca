-- Enters a terminal state: remembers when the job may be forgotten, and drops what only live jobs need.
local function file_terminal(prefix, ulid, state, purge_at)
  redis.call('ZADD', prefix .. 'done:' .. state, purge_at, ulid)
  redis.call('ZREM', prefix .. 'timers', 'e' .. ulid, 'd' .. ulid, 't' .. ulid, 'c' .. ulid)
end

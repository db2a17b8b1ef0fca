#!lua flags=allow-oom
-- configure.lua: changes the settings of a queue.
-- KEYS[1] jw:{<queue>}:   prefix of every key of the queue:
--           config  HASH    setting -> value (docs/schema.md); log -> entries that the event log keeps
--           log     STREAM  the event log (include/tally.lua)
-- ARGV for each setting two: its name, its value ('' removes it)
-- Returns 1

local P = KEYS[1]
for at = 1, #ARGV, 2 do
  if ARGV[at + 1] == '' then
    redis.call('HDEL', P .. 'config', ARGV[at])
    if ARGV[at] == 'log' then redis.call('UNLINK', P .. 'log') end
  else
    redis.call('HSET', P .. 'config', ARGV[at], ARGV[at + 1])
    if ARGV[at] == 'log' then redis.call('XTRIM', P .. 'log', 'MAXLEN', ARGV[at + 1]) end
  end
end
return 1

-- Ends of attempts as their holders recorded them. An entry of the LIST h:<ulid> whose attempt was ended by its holder has, behind the
-- worker, the answer: '<number> <token> <start ms> <end ms> <outcome> <worker> <state> <due ms or 0>'. An entry that the broker
-- made has none: nobody was answered. A success has no entry; the job itself tells of it, and never leaves that end.

-- Returns what the holder was answered that ended the attempt of this token: {DONE, state, due, 1}; nil if it did not, or too long ago.
local function recorded_end(prefix, ulid, token, worker)
  local entries = redis.call('LRANGE', prefix .. 'h:' .. ulid, 0, -1)
  for at = #entries, 1, -1 do
    local head = string.match(entries[at], '^[^\n]*')
    local of_token, who, state, due = string.match(head, '^%d+ (%d+) %d+ %d+ %d+ (%S+) (%d+) (%d+)$')
    if of_token == token and who == worker then return { DONE, tonumber(state), tonumber(due), 1 } end
  end
  return nil
end

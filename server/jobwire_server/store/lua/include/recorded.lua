-- Ends of attempts that their holders recorded. An entry of the LIST h:<ulid> whose attempt was ended by its holder says behind the
-- worker what that was answered: '<number> <token> <start ms> <end ms> <outcome> <worker> <state> <due ms or 0>'. One that the broker
-- ended says nothing there: nobody was answered. A success has no entry; the job itself tells of it, and never leaves that end.

-- What a holder was answered who ended the attempt of this token: {0, state, due, 1}; nil if it did not, or if it is too long ago.
local function recorded_end(prefix, ulid, token, worker)
  local entries = redis.call('LRANGE', prefix .. 'h:' .. ulid, 0, -1)
  for at = #entries, 1, -1 do
    local head = string.match(entries[at], '^[^\n]*')
    local of_token, who, state, due = string.match(head, '^%d+ (%d+) %d+ %d+ %d+ (%S+) (%d+) (%d+)$')
    if of_token == token and who == worker then return { 0, tonumber(state), tonumber(due), 1 } end
  end
  return nil
end

-- Numbers as text. The store writes every Lua number that a command is given with 17 digits of a double, which costs more
-- than the command's own work; a text is handed on as it is.
local function text_of(number) return string.format('%d', number) end

-- The text of the number after the one that `text` says; '1' after none. Batches see the same few again and again.
local successors = {}

local function successor(text)
  if not text then return '1' end
  local known = successors[text]
  if not known then
    known = text_of(text + 1)
    successors[text] = known
  end
  return known
end

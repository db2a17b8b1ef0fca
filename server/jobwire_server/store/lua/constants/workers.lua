-- The statuses of a worker as the store keeps them, and who was known by its id when its stream attached. WorkerStatus and Former
-- (domain/model) have the same numbers; a test compares them.
local READY, PAUSED, DRAINING, LOST = 1, 2, 3, 4
-- As text, which is what a HASH holds.
local LOST_TEXT = '4'
local NOBODY, SAME, ENDED, HELD, UNHEARD, LATER, LIVES = 0, 1, 2, 3, 4, 5, 6

-- The result codes of scripts. Code (store/codes.py) has the same numbers and says what each means; a test compares them.
local DONE, NOT_FOUND, LEASE_LOST, WRONG_STATE, STATE_CHANGED = 0, 1, 2, 3, 4
local QUEUE_PAUSED, ALREADY_REDRIVEN = 5, 6
local SAME_ID, SAME_REQUEST, REQUEST_ID_REUSED, KEY_HOLDER, KEY_TAKEN = 7, 8, 9, 10, 11
local TOO_MANY_PENDING, TOO_MANY_BYTES = 12, 13
local OUTPUT_GAP, OUTPUT_FULL, QUEUE_OUTPUT_FULL = 14, 15, 16
local LOG_COMPACTED, NO_LOG = 17, 18
local SCHEDULE_CHANGED, RUN_PASSED, RUN_SKIPPED, RUN_HELD_BACK = 19, 20, 21, 22
local QUEUE_CHANGED = 23

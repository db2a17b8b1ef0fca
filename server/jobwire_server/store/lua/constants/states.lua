-- The states of a job as the store keeps them. JobState (domain/model/states.py) has the same numbers; a test compares them.
local SCHEDULED, PENDING, RUNNING, CANCELLING = 1, 2, 3, 4
local SUCCEEDED, FAILED, CANCELLED, EXPIRED = 5, 6, 7, 8
-- The same as text: what a HASH holds, and cheaper to write than a number (include/numbers.lua).
local PENDING_TEXT, RUNNING_TEXT, CANCELLING_TEXT, SUCCEEDED_TEXT = '2', '3', '4', '5'
-- Stands for the state of a job that no longer exists.
local FORGOTTEN = 0

"""What scripts answer, as numbers; lua/constants/codes.lua has the same."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """What became of one item of a script's call."""

    DONE = 0
    """Now, or by the same call before, whose answer was lost."""
    NOT_FOUND = 1
    LEASE_LOST = 2
    """The caller does not hold the lease, or what would end the attempt has not happened."""
    WRONG_STATE = 3
    """No such change leads out of the job's state."""
    STATE_CHANGED = 4
    """The job is no longer in the state that the caller decided on: read and decide again."""
    QUEUE_PAUSED = 5
    ALREADY_REDRIVEN = 6
    """The job was redriven since the caller looked, perhaps by this very call."""

    SAME_ID = 7
    """A job with the id exists."""
    SAME_REQUEST = 8
    """The request id stands for a job that was accepted before."""
    REQUEST_ID_REUSED = 9
    """The request id was used for other content."""
    KEY_HOLDER = 10
    """Another job holds the unique key, and is the answer."""
    KEY_TAKEN = 11
    """Another job holds the unique key, and this one is refused."""
    TOO_MANY_PENDING = 12
    TOO_MANY_BYTES = 13

    OUTPUT_GAP = 14
    """The output does not begin where the last one ended."""
    OUTPUT_FULL = 15
    """The job may keep no more output."""
    QUEUE_OUTPUT_FULL = 16

    LOG_COMPACTED = 17
    """The event log does not reach back to the entry."""
    NO_LOG = 18

    SCHEDULE_CHANGED = 19
    """The schedule is no longer what the caller decided on."""
    RUN_PASSED = 20
    """The moment passed without a job."""
    RUN_SKIPPED = 21
    """The moment was skipped because of an earlier job, or of a holder of its unique key."""
    RUN_HELD_BACK = 22
    """The queue is at its limit; the moment waits."""

    QUEUE_CHANGED = 23
    """The queue's settings are no longer what the caller decided on."""
    QUEUE_IN_USE = 24
    """The queue has live jobs or schedules."""
    TOO_MANY_QUEUES = 25

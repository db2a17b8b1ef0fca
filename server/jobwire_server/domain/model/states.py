"""The states of jobs and workers, and the outcomes of attempts, as numbers."""

from __future__ import annotations

from enum import IntEnum


class JobState(IntEnum):
    """Where a job stands; the numbers are those of the contract and of the store."""

    SCHEDULED = 1
    PENDING = 2
    RUNNING = 3
    CANCELLING = 4
    SUCCEEDED = 5
    FAILED = 6
    CANCELLED = 7
    EXPIRED = 8

    @property
    def terminal(self) -> bool:
        """True for the states that no worker and no clock moves a job out of."""
        return self >= JobState.SUCCEEDED

    @property
    def leased(self) -> bool:
        """True for the states in which a worker holds the job."""
        return self in (JobState.RUNNING, JobState.CANCELLING)


class Outcome(IntEnum):
    """How an attempt ended; the numbers are those of the contract and of the store."""

    SUCCEEDED = 1
    FAILED = 2
    CRASHED = 3
    RELEASED = 4
    TIMED_OUT = 5
    CANCELLED = 6
    UNDELIVERED = 7


class FailureOrigin(IntEnum):
    """Who found a failure; the numbers are those of the contract and of the store."""

    UNKNOWN = 0
    """In the history of a former release."""
    WORKER = 1
    BROKER = 2


class WorkerStatus(IntEnum):
    """Whether a worker takes jobs; the numbers are those of the contract and of the store."""

    READY = 1
    PAUSED = 2
    DRAINING = 3
    LOST = 4

"""One delivery of a job: what is handed out, what its worker reports, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.ids import JobId
from jobwire_server.domain.model.output import Written
from jobwire_server.domain.model.states import FailureOrigin, JobState, Outcome


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """A job's own retry settings; None takes the default."""

    max_attempts: int | None = None
    initial_backoff_ms: int | None = None
    max_backoff_ms: int | None = None
    multiplier: float | None = None
    jitter: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in an attempt, in the worker's or the broker's words."""

    type: str = ""
    message: str = ""
    stack: str = ""
    details: bytes = b""
    non_retryable: bool = False
    retry_after_ms: int | None = None
    origin: FailureOrigin = FailureOrigin.BROKER


DEADLINE_MISSED = Failure("DEADLINE_EXCEEDED", "the job was not finished at its deadline")
"""The failure of a job that its deadline ended."""


class Assignment(NamedTuple):
    """A job handed to a worker, with its lease."""

    job_id: JobId
    fencing_token: int
    attempt: int
    record: bytes
    checkpoint: bytes = b""
    """What an earlier attempt saved; b'' for nothing."""

    @property
    def size(self) -> int:
        """The bytes that it holds."""
        return len(self.record) + len(self.checkpoint)


class LeaseRef(NamedTuple):
    """Names a lease, in the words of whoever speaks of it."""

    job_id: str
    fencing_token: int


class Released(NamedTuple):
    """A job given back."""

    started: bool
    reason: str


class Completion(NamedTuple):
    """The end of an attempt, as its worker reports it."""

    queue: str
    ulid: str
    fencing_token: int
    outcome: bytes | Failure | Released | None
    """The result; a failure; a job given back; None confirms a cancellation."""


class WorkerReport(NamedTuple):
    """A worker's report: progress, output, a checkpoint, or none, which only renews the lease."""

    queue: str
    ulid: str
    fencing_token: int
    progress: bytes
    output: Written | None = None
    checkpoint: bytes | None = None
    """For the next attempt; b'' removes what was saved, None keeps it."""


@dataclass(frozen=True, slots=True)
class CancelNotice:
    """Tells a worker to stop a job."""

    job_id: JobId
    fencing_token: int
    reason: str
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Renewal:
    """The answer to a lease renewal or a progress report."""

    lost: bool
    lease_expires_at_ms: int = 0
    cancel: CancelNotice | None = None
    refusal: JobwireError | None = None
    """Why nothing was recorded although the lease holds: the output is full or leaves a gap."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The answer to the end of an attempt."""

    state: JobState
    next_attempt_at_ms: int = 0
    repeated: bool = field(default=False, compare=False)
    """True if the same holder ended the attempt before: this is the answer to that call."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The record of one delivery."""

    number: int
    worker_id: str
    fencing_token: int
    started_at_ms: int
    ended_at_ms: int = 0
    outcome: Outcome | None = None
    failure: Failure | None = None

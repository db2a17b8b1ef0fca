"""A job at the door, and the answer to it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from jobwire_server.domain.errors import InvalidRequest
from jobwire_server.domain.ids import JobId
from jobwire_server.domain.model.attempts import RetryPolicy
from jobwire_server.domain.model.states import JobState
from jobwire_server.domain.model.workers import WorkerSpec


@dataclass(frozen=True, slots=True)
class Route:
    """An operation with the labels that its jobs require; made by `route_of` only."""

    operation: str
    requirements: tuple[tuple[str, str], ...]
    descriptor: bytes
    """The canonical text of the two, kept in the store."""
    id: str
    """16 hexadecimal digits made from it, the same on every server."""

    def served_by(self, worker: WorkerSpec) -> bool:
        """True if the worker has the operation and every required label."""
        if self.operation not in worker.operations:
            return False
        labels = worker.labels
        return all(labels.get(key) == value for key, value in self.requirements)


class UniqueScope(IntEnum):
    """How long a job holds its key; the numbers are those of the contract."""

    PENDING = 1
    UNFINISHED = 2
    PERIOD = 3


class UniqueConflict(IntEnum):
    """What happens if another job holds the key; the numbers are those of the contract."""

    RETURN_EXISTING = 1
    REJECT = 2
    REPLACE_PENDING = 3


class UniqueKey(NamedTuple):
    """A key that at most one job of a queue holds at a time."""

    key: str
    scope: UniqueScope = UniqueScope.UNFINISHED
    period_ms: int = 0
    """For PERIOD: how long from the acceptance."""
    conflict: UniqueConflict = UniqueConflict.RETURN_EXISTING


class RequestId(NamedTuple):
    """Makes the retry of a submission safe."""

    request_id: str
    digest: str
    """Digest of the content without what the broker adds; 32 characters."""
    chosen: bool = False
    """True: the job's id was chosen by the producer as well."""


class NewJob(NamedTuple):
    """A job at the door, checked and ready to be written.

    A tuple rather than a dataclass: one is made for every job submitted.
    """

    job_id: JobId
    """'' in a draft whose producer leaves it to the broker."""
    queue: str
    route: Route
    """Where it waits for a worker."""
    priority: int
    record: bytes
    run_at_ms: int = 0
    """Not before this moment; 0: at once."""
    delay_ms: int = 0
    """Not before this long after the acceptance; 0: at once."""
    expires_at_ms: int = 0
    """Not started after this moment; 0: never expires."""
    execution_timeout_ms: int = 0
    """The longest time of one attempt; 0: no limit."""
    retry: RetryPolicy | None = None
    max_output_bytes: int = 0
    """The most output that is kept; 0: the server's limit."""
    trim_output: bool = False
    """Above the limit, True drops the oldest output, False refuses more."""
    deadline_ms: int = 0
    """FAILED if not finished at this moment; 0: never."""
    request: RequestId | None = None
    unique: UniqueKey | None = None
    retention_ms: int | None = None
    """How long it is kept after its end, 0 or more; None: as long as the queue says."""
    keeps_zero: bool = False
    """Priority 0 was asked for; False: it is that of a job that names none, where it is 0."""
    queue_priority: int = 0
    """The queue's default, which it got in place of 0; 0: none."""


class NotNow(NamedTuple):
    """A job that is refused only because of the time or a setting of the server; it may have been
    accepted before.
    """

    job: NewJob
    """The job to look for."""
    refusal: InvalidRequest
    """The answer if it was not accepted before."""
    named: bool
    """True if the caller gave it an id, by which it can be found."""


class Accepted(NamedTuple):
    """The answer to a submission."""

    job_id: JobId
    state: JobState | None
    """None: the job that the request id stands for is forgotten."""
    existing_record: bytes | None = None
    """None if the job was written now; the record that its id already had; b'' where the request id
    stands for the job, or the job holds the unique key.
    """

    @property
    def existed(self) -> bool:
        """True if nothing was written now."""
        return self.existing_record is not None

"""Everything that the domain can refuse, as exceptions without a transport.

`servicers.status` has the one table that maps each to a gRPC status. A reason is a
name of the contract's `ErrorReason` enum without its prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field, and what would be right."""

    field: str
    """The path from the request, for example `spec.retry.max_attempts`."""
    description: str


class JobwireError(Exception):
    """A refusal with a machine-readable reason.

    Args:
        message: For people: what is wrong, and the remedy.
        metadata: Facts for programs that go with the reason.
        retry_after_ms: When a retry may succeed; None where a retry is no remedy.
    """

    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        metadata: dict[str, str] | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata or {}
        self.retry_after_ms = retry_after_ms


MAX_VIOLATION_BYTES = 2_000
"""Of all the violations that one refusal tells.

They travel in the trailers of a call, as text and as details, and what is more than 8 KiB there is
refused by many a client or proxy.
"""


def _that_fit(violations: Sequence[Violation]) -> tuple[Violation, ...]:
    """Return as many violations as can be told, one at least."""
    size = 0
    for at, violation in enumerate(violations):
        size += len(violation.field.encode()) + len(violation.description.encode())
        if at and size > MAX_VIOLATION_BYTES:
            return tuple(violations[:at])
    return tuple(violations)


class InvalidRequest(JobwireError):
    """One or more fields are missing, malformed or out of range.

    Args:
        violations: What is wrong; as many as fit are told.
        left_out: How many more there are.
    """

    reason = "INVALID_FIELD"

    def __init__(self, violations: Sequence[Violation], left_out: int = 0) -> None:
        self.violations = _that_fit(violations)
        texts = [f"{v.field}: {v.description}" for v in self.violations]
        more = len(violations) - len(self.violations) + left_out
        if more:
            texts.append(f"and {more} more")
        super().__init__(
            "; ".join(texts), metadata={"more_violations": str(more)} if more else None
        )


class TooLarge(InvalidRequest):
    """A payload, a result or a batch is larger than the server takes."""

    reason = "TOO_LARGE"


class Unsupported(InvalidRequest):
    """The request needs a feature that this server does not have; nothing was changed.

    Args:
        violations: Where the request asks for it.
        feature: By its name among the features.
    """

    reason = "UNSUPPORTED"

    def __init__(self, violations: Sequence[Violation], feature: str) -> None:
        super().__init__(violations)
        self.metadata["feature"] = feature


class BadPageToken(InvalidRequest):
    """A page token that this method did not give out for this filter."""

    reason = "BAD_PAGE_TOKEN"


class NotFound(JobwireError):
    """Base of the not-found errors; names the resource for ResourceInfo."""

    resource_type: ClassVar[str] = ""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message, metadata={"name": name})
        self.name = name


class JobNotFound(NotFound):
    """No job has this id, or its retention has ended."""

    reason = "JOB_NOT_FOUND"
    resource_type = "jobwire.v1.Job"

    def __init__(self, job_id: str) -> None:
        super().__init__(
            job_id, f"no job {job_id}: it was never submitted, or its retention has ended"
        )


class QueueNotFound(NotFound):
    """There is no such queue."""

    reason = "QUEUE_NOT_FOUND"
    resource_type = "jobwire.v1.Queue"

    def __init__(self, queue: str) -> None:
        super().__init__(
            queue,
            f"no queue {queue}: its first job creates it, and so do ConfigureQueue and PauseQueue"
            " with allow_missing",
        )


class WorkerNotFound(NotFound):
    """No live worker has this id."""

    reason = "WORKER_NOT_FOUND"
    resource_type = "jobwire.v1.Worker"

    def __init__(self, worker_id: str) -> None:
        super().__init__(
            worker_id,
            f"no worker {worker_id}: it never registered, was lost, or left; register it"
            " and treat the leases that it held as lost",
        )


class LeaseLost(JobwireError):
    """The caller does not hold the job's lease; nothing was changed."""

    reason = "LEASE_LOST"

    def __init__(self, job_id: str, fencing_token: int) -> None:
        super().__init__(
            f"the lease on {job_id} with token {fencing_token} is lost: stop the handler, do"
            " not retry",
            metadata={"job_id": job_id, "fencing_token": str(fencing_token)},
        )


class WrongState(JobwireError):
    """The job's state does not allow the operation."""

    reason = "WRONG_STATE"


class Superseded(JobwireError):
    """Another stream attached with the same worker id."""

    reason = "SUPERSEDED"


class CursorCompacted(JobwireError):
    """What was asked for is no longer kept.

    Args:
        message: For people.
        first_available: A cursor to go on from, '' where only a new beginning helps.
    """

    reason = "CURSOR_COMPACTED"

    def __init__(self, message: str, first_available: str = "") -> None:
        super().__init__(message, metadata={"first_available": first_available})


class WatchLagged(JobwireError):
    """The watcher fell too far behind the changes."""

    reason = "WATCH_LAGGED"


class OutputFull(JobwireError):
    """A limit of output is reached; nothing was written."""

    reason = "OUTPUT_FULL"


class OutputGap(JobwireError):
    """A chunk of output does not continue what was written."""

    reason = "OUTPUT_GAP"

    def __init__(self, job_id: str, expected: int) -> None:
        super().__init__(
            f"the output of {job_id} goes on at offset {expected}; send what is missing first",
            metadata={"job_id": job_id, "expected_offset": str(expected)},
        )


class AlreadyExists(JobwireError):
    """The id is in use for something else."""

    reason = "ALREADY_EXISTS"


class UniqueKeyTaken(JobwireError):
    """Another job holds the unique key; nothing was written."""

    reason = "UNIQUE_KEY_TAKEN"

    def __init__(self, key: str, job_id: str, state: str) -> None:
        named = f"the unique key {key!r}" if key else "its unique key"
        super().__init__(
            f"{named} is held by {job_id}, which is {state}: wait for it, or choose another key",
            metadata={"job_id": job_id, "state": state},
        )


class ScheduleNotFound(NotFound):
    """The queue has no such schedule."""

    reason = "SCHEDULE_NOT_FOUND"
    resource_type = "jobwire.v1.Schedule"

    def __init__(self, queue: str, schedule_id: str) -> None:
        super().__init__(schedule_id, f"the queue {queue} has no schedule {schedule_id}")


class ChangedMeanwhile(JobwireError):
    """The resource is not what the change was made from."""

    reason = "CHANGED_MEANWHILE"


class StoreUnavailable(JobwireError):
    """The store can't be reached, is loading, or is failing over."""

    reason = "STORE_UNAVAILABLE"

    def __init__(self, message: str, *, retry_after_ms: int = 500) -> None:
        super().__init__(message, retry_after_ms=retry_after_ms)


class StoreUnfit(JobwireError):
    """The store answers, and is not to be trusted with new jobs; the message has the remedy."""

    reason = "STORE_UNFIT"

    def __init__(self, message: str, *, retry_after_ms: int = 5_000) -> None:
        super().__init__(message, retry_after_ms=retry_after_ms)


class StoreFull(JobwireError):
    """The store has no memory left; nothing was written."""

    reason = "STORE_FULL"

    def __init__(self) -> None:
        super().__init__(
            "the store is out of memory: finish or purge jobs, shorten the retention, or"
            " raise the store's maxmemory",
            retry_after_ms=5_000,
        )


class QueueFull(JobwireError):
    """The queue is at its limit."""

    reason = "QUEUE_FULL"


class TooManyQueues(JobwireError):
    """The store has as many queues as the server allows."""

    reason = "TOO_MANY_QUEUES"


class TooManyFollows(JobwireError):
    """A stream, or the server, follows as many jobs as it may."""

    reason = "TOO_MANY_FOLLOWS"

    def __init__(self, message: str) -> None:
        super().__init__(
            f"{message}; follow this one when some of them have ended, or elsewhere",
            retry_after_ms=1_000,
        )


class QueueInUse(JobwireError):
    """The queue has live jobs or schedules, and can't be deleted."""

    reason = "QUEUE_IN_USE"


class ServerBusy(JobwireError):
    """More work is in hand than can be finished in time."""

    reason = "SERVER_BUSY"

    def __init__(self, message: str, *, retry_after_ms: int = 200) -> None:
        super().__init__(message, retry_after_ms=retry_after_ms)


class ServerDraining(JobwireError):
    """The server is shutting down."""

    reason = "SERVER_DRAINING"

    def __init__(self) -> None:
        super().__init__(
            "this server is shutting down: call another one, or this one after its restart",
            retry_after_ms=1_000,
        )


class ConfigurationError(JobwireError):
    """The server can't start as it is configured; the message names the setting and the remedy."""

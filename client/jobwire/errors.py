"""What calls and jobs can raise.

`JobwireError` is the root. `CallError` and its subclasses mean that the broker, or something on the
way to it, refused a call; `JobUnsuccessful` and its subclasses, that a job ended without a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from jobwire.models import Failure, Job
from jobwire.v1 import errors_pb2
from jobwire.v1.job_service_pb2 import SubmitResult

_DETAILS_KEY = "grpc-status-details-bin"


class JobwireError(Exception):
    """Root of everything that this package raises on purpose."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field, and what would be right."""

    field: str
    """The path from the request, for example `spec.retry.max_attempts`."""
    description: str


class CallError(JobwireError):
    """A call failed.

    Attributes:
        code: The canonical status.
        reason: A name of the contract's `ErrorReason` without its prefix, for example
            `QUEUE_FULL`; empty if the answer did not come from Jobwire.
        message: For people.
        metadata: Facts for programs that go with the reason.
        violations: What is wrong, field by field.
        retry_after_s: When a repeat may succeed, in seconds; None if the server did not say.
    """

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[Violation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}" if self.reason else self.message


class InvalidRequest(CallError):
    """A field is missing, malformed or out of range; `violations` names each."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(CallError):
    """No such job, queue, worker or schedule."""

    default_code = grpc.StatusCode.NOT_FOUND


class JobNotFound(NotFound):
    """No job has this id: it never existed, or its retention has ended."""


class QueueNotFound(NotFound):
    """No queue has this name; its first job or schedule creates it, or `allow_missing`."""


class WorkerNotFound(NotFound):
    """No worker has this id, or it was lost or has left."""


class ScheduleNotFound(NotFound):
    """The queue has no schedule with this id."""


class AlreadyExists(CallError):
    """The id is in use for something else."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class UniqueKeyTaken(AlreadyExists):
    """Another job holds the unique key."""

    @property
    def job_id(self) -> str:
        """The job that holds it."""
        return self.metadata.get("job_id", "")


class ChangedMeanwhile(CallError):
    """The resource was changed since it was read; read it again and apply the change to that."""

    default_code = grpc.StatusCode.ABORTED


class PreconditionFailed(CallError):
    """The call is not possible in the current state."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class QueueInUse(PreconditionFailed):
    """The queue has live jobs or schedules, and can't be deleted; `metadata["live_jobs"]` and
    `metadata["schedules"]` say how many.
    """


class WrongState(PreconditionFailed):
    """The job's state does not allow the call; `metadata["state"]` names it."""


class LeaseLost(PreconditionFailed):
    """The job is no longer this worker's; nothing was changed."""


class ResourceExhausted(CallError):
    """The store, the queue or the server is full; `retry_after_s` says when to try again."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class QueueFull(ResourceExhausted):
    """The queue is at its limit of jobs or bytes; `retry_after_s` says when to try again."""


class TooManyQueues(ResourceExhausted):
    """The server has as many queues as it may have; no further one is created."""


class OutputFull(ResourceExhausted):
    """The output limit of the job or its queue is reached; what was written stays."""


class OutputTrimmed(CallError):
    """The output asked for is no longer kept.

    Or the event log of a queue no longer reaches back to the cursor of a watch.
    """

    default_code = grpc.StatusCode.OUT_OF_RANGE

    @property
    def first_available(self) -> str:
        """A cursor from which to continue; empty if only a new watch helps."""
        return self.metadata.get("first_available", "")


class Unavailable(CallError):
    """No server answered, or its store is away."""

    default_code = grpc.StatusCode.UNAVAILABLE


class ClientClosed(CallError):
    """The client was closed during the call, whose outcome is unknown."""

    default_code = grpc.StatusCode.CANCELLED

    def __init__(self) -> None:
        super().__init__("the client was closed while the call was under way")


class DeadlineExceeded(CallError, TimeoutError):
    """The time allowed for the call, or for the wait, is over."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class AccessDenied(CallError):
    """The credentials are missing, wrong, or not enough for this."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class JobUnsuccessful(JobwireError):
    """A job ended without a result; `job` is the job as it ended."""

    def __init__(self, job: Job, message: str) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(JobUnsuccessful):
    """The job is a dead letter; `failure` says why."""

    def __init__(self, job: Job) -> None:
        failure = job.failure
        what = f"{failure.type}: {failure.message}" if failure else "without a reason"
        super().__init__(job, f"job {job.id} failed: {what}")

    @property
    def failure(self) -> Failure | None:
        """The failure of its last attempt."""
        return self.job.failure


class JobCancelled(JobUnsuccessful):
    """The job was cancelled."""

    def __init__(self, job: Job) -> None:
        why = f": {job.cancel_reason}" if job.cancel_reason else ""
        super().__init__(job, f"job {job.id} was cancelled{why}")


class JobExpired(JobUnsuccessful):
    """No worker started the job before its `expires_at`."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, f"job {job.id} expired before a worker started it")


_BY_CODE: dict[grpc.StatusCode, type[CallError]] = {
    **{
        kind.default_code: kind
        for kind in (
            InvalidRequest,
            NotFound,
            AlreadyExists,
            PreconditionFailed,
            ResourceExhausted,
            Unavailable,
            DeadlineExceeded,
            AccessDenied,
        )
    },
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
}
_BY_REASON: dict[str, type[CallError]] = {
    "JOB_NOT_FOUND": JobNotFound,
    "QUEUE_NOT_FOUND": QueueNotFound,
    "WORKER_NOT_FOUND": WorkerNotFound,
    "SCHEDULE_NOT_FOUND": ScheduleNotFound,
    "UNIQUE_KEY_TAKEN": UniqueKeyTaken,
    "CHANGED_MEANWHILE": ChangedMeanwhile,
    "QUEUE_FULL": QueueFull,
    "QUEUE_IN_USE": QueueInUse,
    "TOO_MANY_QUEUES": TooManyQueues,
    "WRONG_STATE": WrongState,
    "LEASE_LOST": LeaseLost,
    "OUTPUT_FULL": OutputFull,
    "CURSOR_COMPACTED": OutputTrimmed,
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def call_error(
    code: grpc.StatusCode,
    message: str,
    *,
    reason: str = "",
    metadata: Mapping[str, str] | None = None,
    violations: Iterable[Violation] = (),
    retry_after_s: float | None = None,
) -> CallError:
    """Return an exception of the class that fits a status best."""
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, CallError)
    return kind(
        message,
        code=code,
        reason=reason,
        metadata=metadata,
        violations=violations,
        retry_after_s=retry_after_s,
    )


def from_rpc_error(error: grpc.RpcError) -> CallError:
    """Translate what gRPC raised, with the `google.rpc` details that came with it."""
    # grpc raises objects that are an RpcError and a Call in one; the types do not say so.
    call = cast("grpc.Call", error)
    code, message = call.code(), call.details() or ""
    status = status_pb2.Status()
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            status.ParseFromString(value)
    reason = ""
    metadata: dict[str, str] = {}
    violations: list[Violation] = []
    retry_after_s: float | None = None
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations += [Violation(v.field, v.description) for v in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return call_error(
        code,
        message,
        reason=reason,
        metadata=metadata,
        violations=violations,
        retry_after_s=retry_after_s,
    )


def from_result(result: SubmitResult) -> CallError:
    """Translate what became of one item of a batch that was not accepted."""
    if result.WhichOneof("outcome") is None:
        return CallError("the server answered in a way that this release of jobwire can't read")
    return from_item_error(result.error)


def from_item_error(error: errors_pb2.ItemError) -> CallError:
    """Translate the refusal of one item of a batch."""
    return call_error(
        _CODES.get(error.code, grpc.StatusCode.UNKNOWN),
        error.message,
        reason=errors_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
        if error.reason in errors_pb2.ErrorReason.values()
        else "",
        metadata=error.metadata,
        violations=[Violation(v.field, v.description) for v in error.violations],
        retry_after_s=(
            error.retry_delay.ToTimedelta().total_seconds()
            if error.HasField("retry_delay")
            else None
        ),
    )

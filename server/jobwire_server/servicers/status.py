"""The one table from the domain's errors to gRPC statuses, and what travels with them."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import StatusCode
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from jobwire_server.domain import errors

DOMAIN = "jobwire"
DETAILS_KEY = "grpc-status-details-bin"

TABLE: dict[type[errors.JobwireError], StatusCode] = {
    errors.InvalidRequest: StatusCode.INVALID_ARGUMENT,
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.LeaseLost: StatusCode.FAILED_PRECONDITION,
    errors.WrongState: StatusCode.FAILED_PRECONDITION,
    errors.AlreadyExists: StatusCode.ALREADY_EXISTS,
    errors.UniqueKeyTaken: StatusCode.ALREADY_EXISTS,
    errors.ChangedMeanwhile: StatusCode.ABORTED,
    errors.Superseded: StatusCode.ABORTED,
    errors.CursorCompacted: StatusCode.OUT_OF_RANGE,
    errors.WatchLagged: StatusCode.OUT_OF_RANGE,
    errors.OutputFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.OutputGap: StatusCode.FAILED_PRECONDITION,
    errors.StoreUnavailable: StatusCode.UNAVAILABLE,
    errors.StoreUnfit: StatusCode.UNAVAILABLE,
    errors.StoreFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.QueueFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyQueues: StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyFollows: StatusCode.RESOURCE_EXHAUSTED,
    errors.QueueInUse: StatusCode.FAILED_PRECONDITION,
    errors.Unsupported: StatusCode.FAILED_PRECONDITION,
    errors.ServerBusy: StatusCode.RESOURCE_EXHAUSTED,
    errors.ServerDraining: StatusCode.UNAVAILABLE,
    errors.JobwireError: StatusCode.INTERNAL,
}
"""The nearest class counts: what has no row of its own is a defect, INTERNAL."""

DEFECT = "the server made a mistake; its log has the details under this request id"

# Replies of the store that pass by themselves; Lua hands them on as plain error texts.
_PASSING = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY", "NOREPLICAS", "BUSY")
_DISK = ("MISCONF",)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as it goes out."""

    code: StatusCode
    reason: str
    """A name of `ErrorReason` without its prefix."""
    message: str
    violations: tuple[errors.Violation, ...]
    metadata: dict[str, str]

    @property
    def number(self) -> int:
        """The code as google.rpc.Code counts."""
        number: int = self.code.value[0]
        return number


def code_of(error: errors.JobwireError) -> StatusCode:
    """The row of the table for this error."""
    for cls in type(error).__mro__:
        code = TABLE.get(cls)
        if code is not None:
            return code
    return StatusCode.INTERNAL


def as_domain_error(error: BaseException) -> errors.JobwireError | None:
    """What an exception says in the domain's words; None if it is a defect of the server."""
    if isinstance(error, errors.JobwireError):
        return None if code_of(error) is StatusCode.INTERNAL else error
    if isinstance(error, OutOfMemoryError):
        return errors.StoreFull()
    if isinstance(error, AuthenticationError | NoPermissionError):
        return errors.StoreUnavailable("the store refuses this server's user or password")
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        return errors.StoreUnavailable("the store can't be reached or is not ready")
    if isinstance(error, ClusterDownError | ReadOnlyError | TryAgainError | AskError):
        return errors.StoreUnavailable("the store is failing over")
    if isinstance(error, RedisClusterException):
        return errors.StoreUnavailable("the store's cluster can't serve this queue now")
    if isinstance(error, ResponseError):
        text = str(error)
        if text.startswith("OOM") or "command not allowed when used memory" in text:
            return errors.StoreFull()
        if text.startswith(_DISK):
            return errors.StoreUnavailable(
                "the store can't write to its disk", retry_after_ms=5_000
            )
        if text.startswith(_PASSING):
            return errors.StoreUnavailable("the store is failing over")
    return None


def refusal_of(error: BaseException) -> Refusal:
    """Code, reason and facts of an error, as batches answer them item by item.

    A defect gets INTERNAL and a message that shows nothing of the inside.
    """
    known = as_domain_error(error)
    if known is None:
        return Refusal(StatusCode.INTERNAL, "INTERNAL", DEFECT, (), {})
    violations = known.violations if isinstance(known, errors.InvalidRequest) else ()
    return Refusal(code_of(known), known.reason, known.message, violations, dict(known.metadata))


def details_of(error: BaseException, request_id: str) -> tuple[Refusal, bytes]:
    """The refusal and the serialized google.rpc.Status for `grpc-status-details-bin`."""
    refusal = refusal_of(error)
    known = as_domain_error(error)
    info = error_details_pb2.ErrorInfo(
        reason=refusal.reason,
        domain=DOMAIN,
        metadata={**refusal.metadata, "request_id": request_id},
    )
    status = status_pb2.Status(
        code=refusal.number, message=refusal.message, details=[_packed(info)]
    )
    if refusal.violations:
        bad = error_details_pb2.BadRequest()
        for violation in refusal.violations:
            bad.field_violations.add(field=violation.field, description=violation.description)
        status.details.append(_packed(bad))
    if isinstance(known, errors.NotFound):
        resource = error_details_pb2.ResourceInfo(
            resource_type=known.resource_type,
            resource_name=known.name,
            description=known.message,
        )
        status.details.append(_packed(resource))
    if known is not None and known.retry_after_ms is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(known.retry_after_ms)
        status.details.append(_packed(retry))
    return refusal, status.SerializeToString()


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed

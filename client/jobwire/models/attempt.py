"""One delivery of a job: its progress, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from jobwire._convert import OpenEnum, moment_of, span_of
from jobwire.payloads import from_payload
from jobwire.v1 import job_pb2


class AttemptOutcome(OpenEnum):
    """How an attempt ended. One that only later releases have a name for is its number."""

    UNSPECIFIED = "UNSPECIFIED"
    """Not told."""
    RUNNING = "RUNNING"
    """It has not ended."""
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CRASHED = "CRASHED"
    RELEASED = "RELEASED"
    TIMED_OUT = "TIMED_OUT"
    CANCELLED = "CANCELLED"
    UNDELIVERED = "UNDELIVERED"


class FailureOrigin(OpenEnum):
    """Who found a failure. One that only later releases have a name for is its number."""

    UNSPECIFIED = "UNSPECIFIED"
    """Not known: it was recorded by a former release of the server."""
    WORKER = "WORKER"
    """The worker reported it, whatever type it chose."""
    BROKER = "BROKER"
    """The broker: a budget, a timeout, a deadline, or the loss of a worker. A timeout or deadline
    that passed is the broker's also if the worker noticed it first.
    """

    def to_proto(self) -> job_pb2.FailureOrigin.ValueType:
        """Return the wire's number."""
        if not self.is_named:
            return int(self.value)  # type: ignore[return-value]
        return job_pb2.FailureOrigin.Value(f"FAILURE_ORIGIN_{self.value}")


_ORIGINS: dict[int, FailureOrigin] = {origin.to_proto(): origin for origin in FailureOrigin}
_OUTCOMES: dict[int, AttemptOutcome] = {
    job_pb2.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{outcome.value}"): outcome
    for outcome in AttemptOutcome
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job is, in its worker's words."""

    fraction: float | None
    """0 to 1; None: not known."""
    message: str
    raw_details: job_pb2.Payload
    """For programs, as it came."""
    updated_at: datetime | None

    @property
    def details(self) -> Any:
        """For programs, as a Python value; None if there are none."""
        return from_payload(self.raw_details)

    @classmethod
    def from_proto(cls, proto: job_pb2.Progress) -> Progress:
        """Read the wire's form."""
        return cls(
            fraction=proto.fraction if proto.HasField("fraction") else None,
            message=proto.message,
            raw_details=proto.details,
            updated_at=moment_of(proto, "updated_at"),
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in an attempt."""

    type: str
    message: str
    stack: str
    raw_details: job_pb2.Payload
    """For programs, as it came."""
    non_retryable: bool
    retry_after: timedelta | None
    origin: FailureOrigin = FailureOrigin.UNSPECIFIED

    @property
    def details(self) -> Any:
        """For programs, as a Python value; None if there are none."""
        return from_payload(self.raw_details)

    @classmethod
    def from_proto(cls, proto: job_pb2.Failure) -> Failure:
        """Read the wire's form."""
        return cls(
            type=proto.type,
            message=proto.message,
            stack=proto.stack,
            raw_details=proto.details,
            non_retryable=proto.non_retryable,
            retry_after=span_of(proto, "retry_after"),
            origin=_ORIGINS.get(proto.origin) or FailureOrigin(str(proto.origin)),
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """The record of one delivery of a job."""

    number: int
    worker_id: str
    fencing_token: int
    started_at: datetime | None
    ended_at: datetime | None
    outcome: AttemptOutcome
    failure: Failure | None

    @classmethod
    def from_proto(cls, proto: job_pb2.Attempt) -> Attempt:
        """Read the wire's form."""
        return cls(
            number=proto.number,
            worker_id=proto.worker_id,
            fencing_token=proto.fencing_token,
            started_at=moment_of(proto, "started_at"),
            ended_at=moment_of(proto, "ended_at"),
            outcome=_OUTCOMES.get(proto.outcome) or AttemptOutcome(str(proto.outcome)),
            failure=Failure.from_proto(proto.failure) if proto.HasField("failure") else None,
        )

"""Jobs as Python values. Every time is in UTC; None means unset, as the contract defines it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from jobwire._convert import Seconds, from_duration, from_timestamp, to_duration
from jobwire.payloads import from_payload
from jobwire.unique import UniqueKey
from jobwire.v1 import job_pb2


class JobState(StrEnum):
    """Where a job stands. The last four are terminal."""

    UNSPECIFIED = "UNSPECIFIED"
    """A state that this release does not know."""
    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"

    @property
    def is_terminal(self) -> bool:
        """True for a state that a job leaves by a redrive only."""
        return self in _TERMINAL

    @classmethod
    def from_proto(cls, value: job_pb2.JobState.ValueType) -> JobState:
        """Reads the wire's number; one from a later release gives UNSPECIFIED."""
        return _STATES.get(value, cls.UNSPECIFIED)

    def to_proto(self) -> job_pb2.JobState.ValueType:
        """Returns the wire's number."""
        return job_pb2.JobState.Value(f"JOB_STATE_{self.value}")


_TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})
_STATES: dict[int, JobState] = {state.to_proto(): state for state in JobState}


class AttemptOutcome(StrEnum):
    """How an attempt ended; UNSPECIFIED while it runs."""

    UNSPECIFIED = "UNSPECIFIED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CRASHED = "CRASHED"
    RELEASED = "RELEASED"
    TIMED_OUT = "TIMED_OUT"
    CANCELLED = "CANCELLED"
    UNDELIVERED = "UNDELIVERED"


_OUTCOMES: dict[int, AttemptOutcome] = {
    job_pb2.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{outcome.value}"): outcome
    for outcome in AttemptOutcome
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when a failing job is tried again.

    None takes the queue's default, and where that says nothing the server's.
    """

    max_attempts: int | None = None
    """Failures that end the job, the first attempt included: 1 means no retry. 1 to 1000."""
    initial_backoff: Seconds | None = None
    """The wait before the second attempt. 0 to 24 hours."""
    max_backoff: Seconds | None = None
    """The longest wait between attempts. 0 to 30 days."""
    multiplier: float | None = None
    """The factor from each wait to the next. 1 to 10."""
    jitter: float | None = None
    """The share of each wait that is random. 0 to 1."""

    def to_proto(self) -> job_pb2.RetryPolicy:
        """Returns the wire's form."""
        return job_pb2.RetryPolicy(
            max_attempts=self.max_attempts or 0,
            initial_backoff=(
                None
                if self.initial_backoff is None
                else to_duration(self.initial_backoff, "initial_backoff")
            ),
            max_backoff=None
            if self.max_backoff is None
            else to_duration(self.max_backoff, "max_backoff"),
            multiplier=self.multiplier or 0.0,
            jitter=self.jitter,
        )

    @classmethod
    def from_proto(cls, proto: job_pb2.RetryPolicy) -> RetryPolicy:
        """Reads the wire's form."""
        return cls(
            max_attempts=proto.max_attempts or None,
            initial_backoff=_span(proto, "initial_backoff"),
            max_backoff=_span(proto, "max_backoff"),
            multiplier=proto.multiplier or None,
            jitter=proto.jitter if proto.HasField("jitter") else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPolicy:
    """How much of a job's output is kept, over all attempts, and what becomes of more."""

    max_bytes: int | None = None
    """None: the server's limit, 16 MiB unless configured otherwise, which is also the most."""
    trim: bool = False
    """True: the oldest output is dropped. False: what is above the limit is refused, and the
    handler told."""

    def to_proto(self) -> job_pb2.OutputPolicy:
        """Returns the wire's form."""
        overflow = job_pb2.OUTPUT_OVERFLOW_TRIM if self.trim else job_pb2.OUTPUT_OVERFLOW_REFUSE
        return job_pb2.OutputPolicy(max_bytes=self.max_bytes or 0, overflow=overflow)


@dataclass(frozen=True, slots=True)
class OutputPosition:
    """A point in a job's output."""

    attempt: int
    """The attempt that wrote it; 0: the latest."""
    offset: int
    """The bytes of that attempt's output before the point."""


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """A piece of what a job writes out. Where one ends and the next begins means nothing."""

    attempt: int
    """The attempt that wrote it; a new one begins at offset 0."""
    offset: int
    """The bytes that the attempt wrote before it, over all channels."""
    channel: str
    data: bytes = field(repr=False)
    kind: Literal["text", "bytes"] = "text"
    """How the handler wrote it. Text may be cut within a character."""

    @property
    def text(self) -> str:
        """The content as text; a character that is cut shows as U+FFFD."""
        return self.data.decode("utf-8", "replace")

    @property
    def after(self) -> OutputPosition:
        """The point behind it, from which another watch goes on."""
        return OutputPosition(self.attempt, self.offset + len(self.data))

    @classmethod
    def from_proto(cls, attempt: int, proto: job_pb2.OutputChunk) -> OutputChunk:
        """Reads the wire's form."""
        channel = proto.channel or "stdout"
        if proto.WhichOneof("content") == "data":
            return cls(attempt, proto.offset, channel, proto.data, "bytes")
        return cls(attempt, proto.offset, channel, proto.text.encode())


# Not frozen: that would make each of them take twice the time, and many are made at once.
@dataclass(slots=True, kw_only=True)
class NewJob:
    """A job to submit; `Client.submit` describes each field."""

    operation: str
    payload: Any = None
    queue: str = "default"
    priority: int = 0
    requirements: Mapping[str, str] | None = None
    labels: Mapping[str, str] | None = None
    retry: RetryPolicy | None = None
    execution_timeout: Seconds | None = None
    run_at: datetime | None = None
    delay: Seconds | None = None
    expires_at: datetime | None = None
    output: OutputPolicy | None = None
    job_id: str | None = None
    deadline: datetime | timedelta | None = None
    unique_key: str | UniqueKey | None = None
    retention: Seconds | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job is, in its worker's words."""

    fraction: float | None
    """0 to 1; None: not known."""
    message: str
    details: Any
    updated_at: datetime | None

    @classmethod
    def from_proto(cls, proto: job_pb2.Progress) -> Progress:
        """Reads the wire's form."""
        return cls(
            fraction=proto.fraction if proto.HasField("fraction") else None,
            message=proto.message,
            details=from_payload(proto.details),
            updated_at=_moment(proto, "updated_at"),
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in an attempt."""

    type: str
    message: str
    stack: str
    details: Any
    non_retryable: bool
    retry_after: timedelta | None

    @classmethod
    def from_proto(cls, proto: job_pb2.Failure) -> Failure:
        """Reads the wire's form."""
        return cls(
            type=proto.type,
            message=proto.message,
            stack=proto.stack,
            details=from_payload(proto.details),
            non_retryable=proto.non_retryable,
            retry_after=_span(proto, "retry_after"),
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
        """Reads the wire's form."""
        return cls(
            number=proto.number,
            worker_id=proto.worker_id,
            fencing_token=proto.fencing_token,
            started_at=_moment(proto, "started_at"),
            ended_at=_moment(proto, "ended_at"),
            outcome=_OUTCOMES.get(proto.outcome, AttemptOutcome.UNSPECIFIED),
            failure=Failure.from_proto(proto.failure) if proto.HasField("failure") else None,
        )


@dataclass(frozen=True, slots=True)
class Redrive:
    """A job that was put back after its end."""

    redriven_at: datetime | None
    reason: str
    """In the words of whoever asked."""
    from_state: JobState
    """The terminal state that it was taken out of."""
    number: int
    """How often the job has been redriven, this time included."""

    @classmethod
    def from_proto(cls, proto: job_pb2.Redrive) -> Redrive:
        """Reads the wire's form."""
        return cls(
            redriven_at=_moment(proto, "redriven_at"),
            reason=proto.reason,
            from_state=JobState.from_proto(proto.from_state),
            number=proto.number,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it stood when the server answered."""

    id: str
    queue: str
    operation: str
    state: JobState
    revision: int
    """Grows with every change; of two views of one job the higher is the newer."""
    priority: int
    requirements: Mapping[str, str]
    labels: Mapping[str, str]
    retry: RetryPolicy
    execution_timeout: timedelta | None
    expires_at: datetime | None
    deadline: datetime | None
    """When it fails unless it is finished."""
    unique_key: UniqueKey | None
    retention: timedelta | None
    """How long it is kept after its end; None: as long as its queue keeps jobs that ended so."""
    created_at: datetime | None
    run_at: datetime | None
    """For SCHEDULED: when it becomes PENDING."""
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int
    """The number of the latest attempt; 0 before the first."""
    failures: int
    crashes: int
    interruptions: int
    progress: Progress | None
    failure: Failure | None
    worker_id: str
    fencing_token: int
    lease_expires_at: datetime | None
    cancel_reason: str
    attempts: tuple[Attempt, ...]
    """The latest 100, oldest first; empty in a view without them."""
    output_bytes: int
    """How much output is kept, over all attempts."""
    purge_at: datetime | None
    last_redrive: Redrive | None
    """None: it was never redriven."""
    raw_payload: job_pb2.Payload = field(repr=False)
    """As it came; empty in a view without it."""
    raw_result: job_pb2.Payload = field(repr=False)
    raw_checkpoint: job_pb2.Payload = field(repr=False)

    @property
    def payload(self) -> Any:
        """The handler's input as a Python value (see `from_payload`)."""
        return from_payload(self.raw_payload)

    @property
    def result(self) -> Any:
        """What the handler returned as a Python value; None before SUCCEEDED."""
        return from_payload(self.raw_result)

    @property
    def checkpoint(self) -> Any:
        """What its worker saved last for the next attempt, as a Python value; None: nothing."""
        return from_payload(self.raw_checkpoint)

    @classmethod
    def from_proto(cls, proto: job_pb2.Job) -> Job:
        """Reads the wire's form."""
        spec = proto.spec
        return cls(
            id=proto.id,
            queue=proto.queue,
            operation=spec.operation,
            state=JobState.from_proto(proto.state),
            revision=proto.revision,
            priority=spec.priority,
            requirements=dict(spec.requirements),
            labels=dict(spec.labels),
            retry=RetryPolicy.from_proto(spec.retry),
            execution_timeout=_span(spec, "execution_timeout"),
            expires_at=_moment(spec, "expires_at"),
            deadline=_moment(spec, "deadline"),
            unique_key=UniqueKey.from_proto(spec.unique) if spec.HasField("unique") else None,
            retention=_span(spec, "retention"),
            created_at=_moment(spec, "created_at"),
            run_at=_moment(proto, "run_at"),
            started_at=_moment(proto, "started_at"),
            finished_at=_moment(proto, "finished_at"),
            attempt=proto.attempt,
            failures=proto.failures,
            crashes=proto.crashes,
            interruptions=proto.interruptions,
            progress=Progress.from_proto(proto.progress) if proto.HasField("progress") else None,
            failure=Failure.from_proto(proto.failure) if proto.HasField("failure") else None,
            worker_id=proto.worker_id,
            fencing_token=proto.fencing_token,
            lease_expires_at=_moment(proto, "lease_expires_at"),
            cancel_reason=proto.cancel_reason,
            attempts=tuple(Attempt.from_proto(attempt) for attempt in proto.attempts),
            output_bytes=proto.output_bytes,
            purge_at=_moment(proto, "purge_at"),
            last_redrive=(
                Redrive.from_proto(proto.last_redrive) if proto.HasField("last_redrive") else None
            ),
            raw_payload=spec.payload,
            raw_result=proto.result,
            raw_checkpoint=proto.checkpoint,
        )


def _moment(proto: Any, name: str) -> datetime | None:
    return from_timestamp(getattr(proto, name)) if proto.HasField(name) else None


def _span(proto: Any, name: str) -> timedelta | None:
    return from_duration(getattr(proto, name)) if proto.HasField(name) else None

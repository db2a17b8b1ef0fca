"""A job as the servers tell of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from jobwire._convert import OpenEnum, moment_of, span_of
from jobwire.models.attempt import Attempt, Failure, Progress
from jobwire.models.policies import RetryPolicy
from jobwire.payloads import from_payload
from jobwire.unique import UniqueKey
from jobwire.v1 import job_pb2


class JobState(OpenEnum):
    """Where a job stands. The last four are terminal.

    A state that only later releases have a name for is `JobState("11")`, its number.
    """

    UNSPECIFIED = "UNSPECIFIED"
    """Not told."""
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
        """True for a state that a job leaves by a redrive only.

        Of a state that this release has no name for it is known once a job in it was read: one in a
        terminal state has a `finished_at`.
        """
        return self in _TERMINAL

    @classmethod
    def from_proto(cls, value: int, *, ended: bool = False) -> JobState:
        """Read the wire's number.

        Args:
            value: The number.
            ended: True if the job has a `finished_at`.
        """
        state = _STATES.get(value)
        if state is None:
            state = cls(str(value))
            if ended:
                _TERMINAL.add(state)
        return state

    def to_proto(self) -> job_pb2.JobState.ValueType:
        """Return the wire's number."""
        if not self.is_named:
            return int(self.value)  # type: ignore[return-value]
        return job_pb2.JobState.Value(f"JOB_STATE_{self.value}")


_TERMINAL = {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}
_STATES: dict[int, JobState] = {state.to_proto(): state for state in JobState}


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
        """Read the wire's form."""
        return cls(
            redriven_at=moment_of(proto, "redriven_at"),
            reason=proto.reason,
            from_state=JobState.from_proto(proto.from_state, ended=True),
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
    """The one that it has: its own, or that of its queue when it was accepted."""
    requirements: Mapping[str, str]
    labels: Mapping[str, str]
    headers: Mapping[str, str]
    """What travels with the job for other programs; empty in a view without it."""
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
    """The newest, oldest of them first: at most 100 and 512 KiB; `Client.list_attempts` has all.
    Empty in a view without them."""
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
        """The handler's input as a Python value (see `from_payload`).

        Reading it, a result, a checkpoint or details raises `UnknownPayload` where only a later
        release can.
        """
        return from_payload(self.raw_payload)

    @property
    def payload_metadata(self) -> Mapping[str, bytes]:
        """What its producer told programs of the payload: a codec, a content type, a key's id."""
        return dict(self.raw_payload.metadata)

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
        """Read the wire's form."""
        spec = proto.spec
        return cls(
            id=proto.job_id,
            queue=proto.queue,
            operation=spec.operation,
            state=JobState.from_proto(proto.state, ended=proto.HasField("finished_at")),
            revision=proto.revision,
            priority=proto.priority,
            requirements=dict(spec.requirements),
            labels=dict(spec.labels),
            headers=dict(spec.headers),
            retry=RetryPolicy.from_proto(spec.retry),
            execution_timeout=span_of(spec, "execution_timeout"),
            expires_at=moment_of(spec, "expires_at"),
            deadline=moment_of(spec, "deadline"),
            unique_key=UniqueKey.from_proto(spec.unique) if spec.HasField("unique") else None,
            retention=span_of(spec, "retention"),
            created_at=moment_of(proto, "created_at"),
            run_at=moment_of(proto, "run_at"),
            started_at=moment_of(proto, "started_at"),
            finished_at=moment_of(proto, "finished_at"),
            attempt=proto.attempt,
            failures=proto.failures,
            crashes=proto.crashes,
            interruptions=proto.interruptions,
            progress=Progress.from_proto(proto.progress) if proto.HasField("progress") else None,
            failure=Failure.from_proto(proto.failure) if proto.HasField("failure") else None,
            worker_id=proto.worker_id,
            fencing_token=proto.fencing_token,
            lease_expires_at=moment_of(proto, "lease_expires_at"),
            cancel_reason=proto.cancel_reason,
            attempts=tuple(Attempt.from_proto(attempt) for attempt in proto.attempts),
            output_bytes=proto.output_bytes,
            purge_at=moment_of(proto, "purge_at"),
            last_redrive=(
                Redrive.from_proto(proto.last_redrive) if proto.HasField("last_redrive") else None
            ),
            raw_payload=spec.payload,
            raw_result=proto.result,
            raw_checkpoint=proto.checkpoint,
        )

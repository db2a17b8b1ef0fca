"""A job as the store has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jobwire_server.domain.ids import JobId
from jobwire_server.domain.model.attempts import DEADLINE_MISSED, Attempt, Failure, RetryPolicy
from jobwire_server.domain.model.output import BEGINNING, OutputPosition
from jobwire_server.domain.model.states import JobState


@dataclass(frozen=True, slots=True)
class Redrive:
    """A job that was put back after its end."""

    at_ms: int
    reason: str
    from_state: JobState
    """The terminal state that it was taken out of."""
    number: int
    """How often the job has been redriven, this time included."""
    request_id: str = ""
    """Of the call that did it; '' if it had none."""
    delay_ms: int | None = None
    """That the call asked for; None: it had no id, or a former release wrote it."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stood when the store was read."""

    job_id: JobId
    queue: str
    record: bytes
    state: JobState
    revision: int
    run_at_ms: int = 0
    started_at_ms: int = 0
    finished_at_ms: int = 0
    purge_at_ms: int = 0
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    interruptions: int = 0
    lost_deliveries: int = 0
    """How often it was on its way to a worker that never acknowledged it."""
    execution_timeout_ms: int = 0
    priority: int | None = None
    """The one that it has; None: that of its record."""
    retry: RetryPolicy | None = None
    progress: bytes = b""
    progress_at_ms: int = 0
    result: bytes = b""
    checkpoint: bytes = b""
    """What its worker saved last for the next attempt; b'' if nothing, or if it was not asked for.
    """
    output_bytes: int = 0
    """Bytes of output that are kept."""
    output_end: OutputPosition = BEGINNING
    """Behind the last byte that was written."""
    output_first: OutputPosition = BEGINNING
    """Behind the last byte that was dropped, once some was."""
    worker_id: str = ""
    fencing_token: int = 0
    lease_expires_at_ms: int = 0
    cancel_reason: str = ""
    deadline_ms: int = 0
    """FAILED if not finished at this moment; 0: never."""
    missed_deadline: bool = False
    """It ended at its deadline while no worker held it."""
    attempts: tuple[Attempt, ...] = ()
    redrive: Redrive | None = None
    """The latest one."""
    read_at_ms: int = field(default=0, compare=False)
    """When it was read. The job is no other for being read again."""
    size: int = field(default=0, compare=False)
    """About how many bytes were read of it, and an answer with all of these has."""

    @property
    def failure(self) -> Failure | None:
        """The failure of the latest attempt that had one, or the deadline where that ended the job
        between attempts.
        """
        if self.missed_deadline and self.state is JobState.FAILED:
            return DEADLINE_MISSED
        return next((a.failure for a in reversed(self.attempts) if a.failure), None)


@dataclass(frozen=True, slots=True)
class RecordFacts:
    """What matching and filters need to know of a record."""

    operation: str
    requirements: Mapping[str, str]
    priority: int
    labels: Mapping[str, str] = field(default_factory=dict)
    """The producer's own."""
    created_at_ms: int = 0
    """When the broker accepted it."""


@dataclass(frozen=True, slots=True)
class BulkProgress:
    """How far an action on many jobs is."""

    matched: int
    changed: int
    """With a dry run: how many could be."""
    skipped: int
    """Of those matched, what could not be changed."""
    samples: tuple[str, ...] = ()
    """Ids of some jobs that were changed since it was told last."""
    done: bool = False

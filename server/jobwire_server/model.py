"""What the broker knows of jobs, queues and workers, free of transport and store.

A job's *record* is what its producer wrote, as opaque bytes that nobody here reads.
Times are Unix milliseconds by the store's clock. Payload-like values (results,
progress, failure details) are opaque bytes as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, TypedDict

if TYPE_CHECKING:
    from jobwire_server.errors import JobwireError
    from jobwire_server.operations.routing import Route


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


class WorkerStatus(IntEnum):
    """Whether a worker takes jobs; the numbers are those of the contract and of the store."""

    READY = 1
    PAUSED = 2
    DRAINING = 3
    LOST = 4


class Former(IntEnum):
    """Who was known by a worker's id before a stream attached; the numbers are the store's."""

    NOBODY = 0
    SAME = 1
    """The same process."""
    ENDED = 2
    """Another process, whose stream had ended: it is dead."""
    HELD = 3
    """Another process, whose stream held: its id is taken from it."""
    UNHEARD = 4
    """Another process, of which nobody knows, because its server is silent."""
    LATER = 5
    """The same process, in a later attempt."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """A job's own retry fields; None takes the default."""

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


DEADLINE_MISSED = Failure("DEADLINE_EXCEEDED", "the job was not finished at its deadline")
"""Of a job that its deadline ended."""


class UniqueScope(IntEnum):
    """While which jobs hold a unique key; the numbers are those of the contract."""

    PENDING = 1
    UNFINISHED = 2
    PERIOD = 3


class UniqueConflict(IntEnum):
    """What happens where another job holds the key; the numbers are those of the contract."""

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
    """Of the content without what the broker adds; 32 characters."""
    chosen: bool = False
    """True: the job's id was chosen by the producer as well."""


class NewJob(NamedTuple):
    """A job at the door, checked and ready to be written.

    A tuple rather than a dataclass: one is made for every job submitted.
    """

    job_id: str
    queue: str
    route: Route
    """What it waits on for a worker."""
    priority: int
    record: bytes
    run_at_ms: int = 0
    """Not before this moment; 0: at once."""
    delay_ms: int = 0
    """Not before this long after the acceptance; 0: at once."""
    expires_at_ms: int = 0
    """Not started after this moment; 0: never expires."""
    execution_timeout_ms: int = 0
    """The longest run of one attempt; 0: no limit."""
    retry: RetryPolicy | None = None
    max_output_bytes: int = 0
    """The most output that is kept; 0: the server's limit."""
    trim_output: bool = False
    """True: above it the oldest is dropped; False: what is above it is refused."""
    deadline_ms: int = 0
    """FAILED if not finished at this moment; 0: never."""
    request: RequestId | None = None
    unique: UniqueKey | None = None
    retention_ms: int | None = None
    """How long it is kept after its end, 0 or more; None: as long as the queue says."""


class Accepted(NamedTuple):
    """The answer to a submission."""

    job_id: str
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


class Assignment(NamedTuple):
    """A job handed to a worker, with its lease."""

    job_id: str
    fencing_token: int
    attempt: int
    record: bytes
    checkpoint: bytes = b""
    """What an earlier attempt saved; b'' if nothing."""

    @property
    def size(self) -> int:
        """The bytes that it holds."""
        return len(self.record) + len(self.checkpoint)


class LeaseRef(NamedTuple):
    """Names a lease."""

    job_id: str
    fencing_token: int


class Ended(NamedTuple):
    """The end of an attempt as its worker reports it."""

    queue: str
    ulid: str
    fencing_token: int
    outcome: bytes | Failure | Released | None
    """The result; a failure; a job given back; None confirms a cancellation."""


class Released(NamedTuple):
    """A job given back."""

    started: bool
    reason: str


class Piece(NamedTuple):
    """Consecutive output on one channel."""

    channel: str
    text: bool
    """True for UTF-8, False for bytes of any kind."""
    content: bytes


class OutputPlace(NamedTuple):
    """A point in a job's output; places compare in the order in which output is written."""

    attempt: int
    offset: int


BEGINNING = OutputPlace(0, 0)
"""Before everything that a job can write."""


class Written(NamedTuple):
    """Output that was written in one go, without a gap."""

    attempt: int
    offset: int
    """Of its first byte."""
    pieces: tuple[Piece, ...]


class Reported(NamedTuple):
    """A worker's report: progress, output, a checkpoint, or none, which only renews the lease."""

    queue: str
    ulid: str
    fencing_token: int
    progress: bytes
    output: Written | None = None
    checkpoint: bytes | None = None
    """For the next attempt; b'' takes away what was saved, None leaves it."""


@dataclass(frozen=True, slots=True)
class CancelNotice:
    """Tells a worker to stop a job."""

    job_id: str
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
    """True if the same holder had ended the attempt before: this is the answer to that, whatever
    the end was said to be now.
    """


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


@dataclass(frozen=True, slots=True)
class Redrive:
    """A job that was put back after its end."""

    at_ms: int
    reason: str
    from_state: JobState
    """The terminal state that it was taken out of."""
    number: int
    """How often the job has been redriven, this time included."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stood when the store was read."""

    job_id: str
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
    retry: RetryPolicy | None = None
    progress: bytes = b""
    progress_at_ms: int = 0
    result: bytes = b""
    checkpoint: bytes = b""
    """What its worker saved last for the next attempt; b'' if nothing, or if it was not asked for.
    """
    output_bytes: int = 0
    """Bytes of output that are kept."""
    output_end: OutputPlace = BEGINNING
    """Behind the last byte that was written."""
    output_first: OutputPlace = BEGINNING
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

    @property
    def failure(self) -> Failure | None:
        """The failure of the latest attempt that had one, or the deadline where that ended the job
        between attempts.
        """
        if self.missed_deadline and self.state is JobState.FAILED:
            return DEADLINE_MISSED
        return next((a.failure for a in reversed(self.attempts) if a.failure), None)


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What an operator chose for a queue; the defaults say what a queue without settings has."""

    event_log_entries: int = 0
    """How many changes its event log keeps; 0: it has none."""
    max_output_bytes: int = 0
    """The most output that its jobs keep together; 0: the server's limit."""
    retry: RetryPolicy | None = None
    """What the unset retry fields of its jobs mean; None: the server's defaults."""
    max_pending_jobs: int = 0
    """The most jobs that are SCHEDULED or PENDING together; 0: no limit."""
    max_live_bytes: int = 0
    """The most bytes of specs of its live jobs; 0: no limit."""
    retain_succeeded_ms: int | None = None
    """How long SUCCEEDED jobs are kept, 0 or more; None: the server's default."""
    retain_ended_ms: int | None = None
    """How long FAILED, CANCELLED and EXPIRED jobs are kept, 0 or more; None: the server's default.
    """
    max_ended_jobs: int = 0
    """The most ended jobs that are kept; 0: no limit."""
    max_ended_bytes: int = 0
    """The most bytes of specs and results of ended jobs; 0: no limit."""
    retain_output_ms: int | None = None
    """How long the output of an ended job is kept, 0 or more; None: as long as the job."""
    retain_event_log_ms: int | None = None
    """The age above which entries of the event log go, 0 or more; None: no limit."""
    priority_ageing_ms: int = 0
    """The wait that counts as one priority, 100 or more; 0: no ageing."""


NO_SETTINGS = QueueSettings()
"""Of a queue that nobody configured."""


class QueueChanges(TypedDict, total=False):
    """Settings to change; a field that is missing stays as it is. Meaning as in QueueSettings."""

    event_log_entries: int
    max_output_bytes: int
    retry: RetryPolicy | None
    max_pending_jobs: int
    max_live_bytes: int
    retain_succeeded_ms: int | None
    retain_ended_ms: int | None
    max_ended_jobs: int
    max_ended_bytes: int
    retain_output_ms: int | None
    retain_event_log_ms: int | None
    priority_ageing_ms: int


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


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue with its depths."""

    name: str
    paused: bool
    depth: Mapping[JobState, int]
    totals: Mapping[str, int]
    oldest_pending_ms: int = 0
    """When the oldest ready job became ready; 0 where there is none or only its record tells."""
    oldest_pending_record: bytes = b""
    """The record of that job where only it tells."""
    now_ms: int = 0
    settings: QueueSettings = NO_SETTINGS
    output_bytes: int = 0
    live_bytes: int = 0
    """Of the records of its jobs that have not ended."""
    ended_bytes: int = 0
    """Of the records and results of those that have."""
    samples: tuple[tuple[int, Mapping[str, int]], ...] = ()
    """Totals at moments past, newest first."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is and serves."""

    worker_id: str
    queues: tuple[str, ...]
    operations: frozenset[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    concurrency: int = 0
    lease_ms: int = 0
    client: str = ""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as the broker sees it."""

    spec: WorkerSpec
    status: WorkerStatus
    registered_at_ms: int = 0
    last_seen_at_ms: int = 0
    lost_at_ms: int = 0
    attached: bool = False
    """Its stream holds."""
    server_id: str = ""
    """Where its stream leads, or led last."""
    credits: int = 0
    assigned: int = 0
    succeeded: int = 0
    failed: int = 0
    stuck: int = 0
    """Handlers that do not stop, as it says."""
    held_jobs: int = 0
    leases: tuple[LeaseRef, ...] = ()


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

"""Queues, workers and servers as Python values. Every time is in UTC; None means unset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from jobwire._convert import OpenEnum, from_duration, from_timestamp, moment_of, span_of
from jobwire.models import JobState, RetryPolicy
from jobwire.v1 import admin_service_pb2, worker_service_pb2


class WorkerStatus(OpenEnum):
    """What a worker does with new jobs. What only later releases have a name for is its number."""

    UNSPECIFIED = "UNSPECIFIED"
    """Not told; in a filter, any."""
    READY = "READY"
    PAUSED = "PAUSED"
    DRAINING = "DRAINING"
    LOST = "LOST"

    def to_proto(self) -> worker_service_pb2.WorkerStatus.ValueType:
        """Return the wire's number."""
        if not self.is_named:
            return int(self.value)  # type: ignore[return-value]
        return worker_service_pb2.WorkerStatus.Value(f"WORKER_STATUS_{self.value}")


_STATUSES: dict[int, WorkerStatus] = {status.to_proto(): status for status in WorkerStatus}


@dataclass(frozen=True, slots=True)
class QueueRates:
    """Jobs a second, averaged over `window`."""

    submitted: float
    started: float
    succeeded: float
    failed: float
    window: timedelta


@dataclass(frozen=True, slots=True)
class QueueTotals:
    """Counts since the queue was created."""

    submitted: int
    started: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    retried: int
    crashed: int
    released: int


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """The settings of a queue."""

    event_log_entries: int = 0
    """How many changes of jobs its event log keeps; 0: it keeps none."""
    max_output_bytes: int = 0
    """The most output that its jobs keep together; 0: the server's limit."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    """What the unset retry fields of its jobs mean; None takes the server's default."""
    max_pending_jobs: int = 0
    """The most jobs that may be SCHEDULED or PENDING together; 0: no limit."""
    max_live_bytes: int = 0
    """The most bytes of specs that its live jobs may hold together; 0: no limit."""
    retain_succeeded: timedelta | None = None
    """How long SUCCEEDED jobs are kept; None: the server's default."""
    retain_ended: timedelta | None = None
    """How long FAILED, CANCELLED and EXPIRED jobs are kept; None: the server's default."""
    max_ended_jobs: int = 0
    """The most ended jobs that are kept; 0: no limit."""
    max_ended_bytes: int = 0
    """The most bytes that specs and results of ended jobs may take together; 0: no limit."""
    retain_output: timedelta | None = None
    """How long the output of an ended job is kept; None: as long as the job."""
    retain_event_log: timedelta | None = None
    """The age above which entries of the event log are dropped; None: no limit."""
    priority_ageing: timedelta | None = None
    """A job that has waited this long counts as one priority higher; None: no ageing."""
    default_priority: int = 0
    """The priority of jobs that name none."""

    @classmethod
    def from_proto(cls, proto: admin_service_pb2.QueueConfig) -> QueueConfig:
        """Read the wire's form."""
        return cls(
            event_log_entries=proto.event_log_entries,
            max_output_bytes=proto.max_output_bytes,
            retry=RetryPolicy.from_proto(proto.retry),
            max_pending_jobs=proto.max_pending_jobs,
            max_live_bytes=proto.max_live_bytes,
            retain_succeeded=span_of(proto, "retain_succeeded"),
            retain_ended=span_of(proto, "retain_ended"),
            max_ended_jobs=proto.max_ended_jobs,
            max_ended_bytes=proto.max_ended_bytes,
            retain_output=span_of(proto, "retain_output"),
            retain_event_log=span_of(proto, "retain_event_log"),
            priority_ageing=span_of(proto, "priority_ageing"),
            default_priority=proto.default_priority,
        )


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue as it stood when the server answered."""

    name: str
    paused: bool
    counts: Mapping[JobState, int]
    """Jobs in each state; states without jobs are left out."""
    oldest_pending_age: timedelta | None
    rates: QueueRates | None
    """None in listings."""
    totals: QueueTotals
    config: QueueConfig = field(default_factory=QueueConfig)
    output_bytes: int = 0
    """How much output its jobs keep."""
    live_bytes: int = 0
    """How many bytes the specs of its live jobs take."""
    ended_bytes: int = 0
    """How many bytes the specs and results of its ended jobs take."""
    revision: int = 0
    """Grows with every change of its settings."""

    @classmethod
    def from_proto(cls, proto: admin_service_pb2.Queue) -> QueueInfo:
        """Read the wire's form."""
        rates, totals = proto.rates, proto.totals
        return cls(
            name=proto.queue,
            paused=proto.paused,
            counts={JobState.from_proto(entry.state): entry.count for entry in proto.counts},
            oldest_pending_age=span_of(proto, "oldest_pending_age"),
            rates=(
                QueueRates(
                    submitted=rates.submitted,
                    started=rates.started,
                    succeeded=rates.succeeded,
                    failed=rates.failed,
                    window=from_duration(rates.window),
                )
                if proto.HasField("rates")
                else None
            ),
            totals=QueueTotals(
                submitted=totals.submitted,
                started=totals.started,
                succeeded=totals.succeeded,
                failed=totals.failed,
                cancelled=totals.cancelled,
                expired=totals.expired,
                retried=totals.retried,
                crashed=totals.crashed,
                released=totals.released,
            ),
            config=QueueConfig.from_proto(proto.config),
            output_bytes=proto.output_bytes,
            live_bytes=proto.live_bytes,
            ended_bytes=proto.ended_bytes,
            revision=proto.revision,
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """A job that a worker holds."""

    job_id: str
    fencing_token: int


@dataclass(frozen=True, slots=True)
class WorkerTotals:
    """What a worker on a stream has done since it registered, to within a second or two."""

    assigned: int = 0
    succeeded: int = 0
    failed: int = 0
    """Jobs that it completed without a result."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker as the broker sees it."""

    id: str
    status: WorkerStatus
    queues: tuple[str, ...]
    operations: tuple[str, ...]
    labels: Mapping[str, str]
    concurrency: int
    client: str
    held_jobs: int
    registered_at: datetime | None
    last_seen_at: datetime | None
    leases: tuple[Lease, ...]
    """Up to 1000; empty in listings."""
    attached: bool = False
    """True: it holds a stream to a server; false: it makes calls, or its stream is broken."""
    server_id: str = ""
    """The server that its stream leads to, or led to last."""
    credits: int = 0
    """How many jobs it may hold at once, if it holds a stream."""
    totals: WorkerTotals = WorkerTotals()
    stuck: int = 0
    """How many of its handlers keep running although they were told to stop."""
    free: int | None = None
    """How many more jobs it can take now; None: not known."""
    build_id: str = ""
    """Which build of its program it runs."""
    told: Mapping[str, str] = field(default_factory=dict)
    """What it tells of itself; see `Worker.tell`."""

    @classmethod
    def from_proto(cls, proto: admin_service_pb2.Worker) -> WorkerInfo:
        """Read the wire's form."""
        spec = proto.spec
        return cls(
            id=spec.worker_id,
            status=_STATUSES.get(proto.status) or WorkerStatus(str(proto.status)),
            queues=tuple(spec.queues) or ("default",),
            operations=tuple(spec.operations),
            labels=dict(spec.labels),
            concurrency=spec.concurrency,
            client=spec.client,
            held_jobs=proto.held_jobs,
            registered_at=moment_of(proto, "registered_at"),
            last_seen_at=moment_of(proto, "last_seen_at"),
            leases=tuple(Lease(lease.job_id, lease.fencing_token) for lease in proto.leases),
            attached=proto.attached,
            server_id=proto.server_id,
            credits=proto.credits,
            totals=WorkerTotals(
                assigned=proto.totals.assigned,
                succeeded=proto.totals.succeeded,
                failed=proto.totals.failed,
            ),
            stuck=proto.stuck,
            free=proto.free if proto.HasField("free") else None,
            build_id=spec.build_id,
            told=dict(proto.status_metadata.entries),
        )


@dataclass(frozen=True, slots=True)
class WorkerChange:
    """A change of a worker."""

    id: str
    worker: WorkerInfo | None
    """As it stands now; None: it left, or was forgotten."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is, what it is connected to, and its limits."""

    server_id: str
    version: str
    started_at: datetime
    store_engine: str
    store_version: str
    store_embedded: bool
    store_durability: str
    store_time: datetime
    max_payload_bytes: int
    max_result_bytes: int
    max_batch_jobs: int
    max_message_bytes: int
    max_output_bytes: int
    max_queues: int = 0
    """The most queues; 0: the server does not say."""
    processes: int = 1
    """How many processes share the server's port; this is the answer of one of them."""
    process_index: int = 0
    """Which of them answered, from 0."""
    store_problem: str = ""
    """What is wrong with the store now, for people; '' if nothing is."""
    features: tuple[str, ...] = ()
    """What it supports beyond the first version of the contract; jobs may require these."""

    @classmethod
    def from_proto(cls, proto: admin_service_pb2.GetServerInfoResponse) -> ServerInfo:
        """Read the wire's form."""
        limits = proto.limits
        return cls(
            server_id=proto.server_id,
            version=proto.version,
            started_at=from_timestamp(proto.started_at),
            store_engine=proto.store_engine,
            store_version=proto.store_version,
            store_embedded=proto.store_embedded,
            store_durability=proto.store_durability,
            store_time=from_timestamp(proto.store_time),
            max_payload_bytes=limits.max_payload_bytes,
            max_result_bytes=limits.max_result_bytes,
            max_batch_jobs=limits.max_batch_jobs,
            max_message_bytes=limits.max_message_bytes,
            max_output_bytes=limits.max_output_bytes,
            max_queues=limits.max_queues,
            processes=max(1, proto.processes),
            process_index=proto.process_index,
            store_problem=proto.store_problem,
            features=tuple(proto.features),
        )

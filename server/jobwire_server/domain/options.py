"""The knobs of the broker itself, as plain values. `settings` fills them from outside."""

from __future__ import annotations

from dataclasses import dataclass, field

from jobwire_server.domain.model import WorkerSpec

MOST_PATIENCE_S = 5.0
RENEWALS_A_LEASE = 3
"""A lease is renewed when a third of it has passed, so that two renewals may fail."""
HEARTBEAT_CALLS_MS = 2_000
"""Calls cost more than frames, so that workers which make them are heard of less often."""


@dataclass(frozen=True, slots=True)
class RetryDefaults:
    """What a job's unset retry fields mean."""

    max_attempts: int = 3
    """Failures that end a job, the first attempt included. 1 to 1000."""
    initial_backoff_ms: int = 1_000
    """The wait before the second attempt. 0 to 24 hours."""
    max_backoff_ms: int = 600_000
    """The longest wait. 0 to 30 days."""
    multiplier: float = 2.0
    """The factor from each wait to the next. 1 to 10."""
    jitter: float = 0.2
    """The random share of each wait. 0 to 1."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests may hold."""

    max_payload_bytes: int = 1 << 20
    """The largest serialized payload of a job."""
    max_result_bytes: int = 1 << 20
    """The largest serialized result of a job."""
    max_batch_jobs: int = 1_000
    """The longest SubmitJobs batch and the most jobs of one claim."""
    max_message_bytes: int = 16 << 20
    """The largest message on the wire."""
    max_output_bytes: int = 16 << 20
    """The most output that one job keeps."""
    max_queue_output_bytes: int = 1 << 30
    """The most output that the jobs of one queue keep together, unless the queue is configured."""
    max_queues: int = 10_000
    """The most queues; beyond it no further one is created, and those that there are go on."""
    max_queued_requests: int = 20_000
    """Jobs and reports that may wait for the store in one server; beyond it calls get SERVER_BUSY.
    """
    max_queued_bytes: int = 64 << 20
    """The bytes of payloads, results and output among them. Not less than `max_message_bytes`."""


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """How the broker treats jobs and workers. Times are in milliseconds."""

    lease_ms: int = 30_000
    """The lease of a worker that asks for none of its own. 1 s to 1 h."""
    heartbeat_interval_ms: int = 1_400
    """How often a server says something on each worker's stream. 100 ms to 5 min.

    A worker that hears nothing for two of them leaves, and needs the time to attach elsewhere
    before it is lost.
    """
    worker_timeout_ms: int = 7_000
    """A worker silent for so long is lost. At least two heartbeat intervals."""
    claim_timeout_ms: int = 5_000
    """How long an assignment on a stream may wait for its acknowledgement. 100 ms to 10 min."""
    reconnect_window_ms: int = 4_200
    """How long a worker whose stream broke may take to attach again. 0 to 10 min."""
    max_stream_age_ms: int = 1_800_000
    """After about this long a stream is drained, so that load spreads over servers. At least 1 s.
    """
    drain_deadline_ms: int = 30_000
    """How long a stream that is drained for its age is still held. 1 s to 1 h."""
    cancel_grace_ms: int = 30_000
    """How long a running job's worker may take to confirm a cancellation. 0 to 1 day."""
    max_crashes: int = 3
    """The crash that ends a job: 3 means that the third lost lease is the last. 1 to 1000."""
    max_interruptions: int = 1_000
    """The interruption that ends a job: deploys must not, a loop of them must. 1 to 1000000."""
    retain_succeeded_ms: int = 86_400_000
    """How long SUCCEEDED jobs are kept: 1 day."""
    retain_ended_ms: int = 14 * 86_400_000
    """How long FAILED, CANCELLED and EXPIRED jobs are kept: 14 days."""
    retain_lost_workers_ms: int = 3_600_000
    """How long lost workers stay listed: 1 hour."""
    tick_ms: int = 1_000
    """The longest time between two looks of the maintenance loops at a queue that is in use.

    A due job known to this server is promoted when it is due, not at the next look.
    """
    bookmark_ms: int = 15_000
    """How long a watch stream may be quiet before it carries a bookmark.

    Proxies take a stream for dead that was quiet for 30 to 60 s.
    """
    max_linger_ms: float = 4.0
    """The longest that a call to the store is held while more requests for it keep coming.

    0: not at all. A caller who is alone waits some 30 microseconds.
    """
    wait_replicas: int = 0
    """How many replicas of the store must have a write before it is answered. 0 to 10."""
    wait_timeout_ms: int = 1_000
    """How long they may take; then the call fails, and may be repeated. 10 ms to 4 s."""
    retry: RetryDefaults = field(default_factory=RetryDefaults)
    limits: Limits = field(default_factory=Limits)

    def lease_of(self, worker: WorkerSpec) -> int:
        """Return the lease of each of a worker's jobs, milliseconds."""
        return worker.lease_ms or self.lease_ms

    def call_heartbeat_ms(self, worker: WorkerSpec) -> int:
        """Return how often a worker that makes calls is to send heartbeats, which alone keep it and
        its leases: two of them may fail.
        """
        return min(
            max(self.heartbeat_interval_ms, HEARTBEAT_CALLS_MS),
            self.worker_timeout_ms // RENEWALS_A_LEASE,
            self.lease_of(worker) // RENEWALS_A_LEASE,
        )

    def call_contact_timeout_ms(self, lease_ms: int) -> int:
        """How long after the last answered call a worker that makes calls may take its jobs for its
        own, counted from when it asked.

        Less than the worker timeout, because signs of life are recorded once a second, and than the
        lease.
        """
        return min(self.worker_timeout_ms * 3 // 4, lease_ms * 9 // 10)

    @property
    def patience_s(self) -> float:
        """How long a server that could not listen takes nothing from anybody: what workers need to
        come back, however long the window.
        """
        return min(self.reconnect_window_ms / 1000, MOST_PATIENCE_S)

    def contact_timeout_ms(self, lease_ms: int) -> int:
        """The same for a worker on a stream, after the last frame that it heard. Its leases are
        renewed when a third of them has passed. Less than the window and than what is left of a
        lease, for handlers take a moment to stop.
        """
        calls_ms = self.call_contact_timeout_ms(lease_ms)
        return min(self.reconnect_window_ms * 9 // 10, calls_ms, lease_ms * 3 // 5)

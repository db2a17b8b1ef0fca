"""The demand of a stream: what its free credits, in jobs and in bytes, leave to take."""

from __future__ import annotations

from typing import Protocol

from jobwire_server.domain.model import Assignment, WorkerSpec, WorkerStatus
from jobwire_server.workers.demand import Demand
from jobwire_server.workers.held_leases import HeldLeases


class Session(Protocol):
    """Who takes the jobs."""

    leases: HeldLeases

    def assign(self, assignments: list[Assignment]) -> bool:
        """Put claimed jobs on their way; return False if the stream is over."""


class StreamDemand(Demand):
    """What a stream's free credits leave to take.

    Args:
        session: Of the stream.
        spec: The worker.
        lease_ms: The lease of each job.
        free: How many jobs it can take.
    """

    def __init__(self, session: Session, spec: WorkerSpec, lease_ms: int, free: int) -> None:
        super().__init__(spec, lease_ms, free)
        self._session = session
        self._ready = True
        self.suspended_at: float | None = None
        """Since when the worker is late with acknowledgements; None: it is not."""

    def reserve(self, most: int, queue: str) -> int:
        """Reserve jobs, as far as the credit in bytes allows."""
        leases = self._session.leases
        return super().reserve(min(most, leases.bytes.left(bool(leases))), queue)

    def deliver(self, assignments: list[Assignment]) -> bool:
        """Hand the jobs to the session."""
        return self._session.assign(assignments)

    def apply_status(self, status: WorkerStatus) -> None:
        """Follow what the worker or an operator wants."""
        self._ready = status is WorkerStatus.READY
        self._pause_or_resume()

    def suspend(self, now: float) -> None:
        """Take no jobs until the worker acknowledges what it has; `now` by the monotonic clock."""
        self.suspended_at = self.suspended_at or now
        self._pause_or_resume()

    def trust(self) -> None:
        """Take jobs again: the worker acknowledges."""
        self.suspended_at = None
        self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        wanted = self._ready and self.suspended_at is None
        if not wanted:
            self.paused = True
        elif self.paused:
            self.resume()

"""What workers' parts ask of the broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import (
    Assignment,
    Completed,
    Completion,
    Former,
    Renewal,
    WorkerReport,
)
from jobwire_server.store.attempts import ReportToWrite
from jobwire_server.store.workers import LostWorker


class Attempts(Protocol):
    """Ends attempts for their holders."""

    async def complete_many(
        self, worker_id: str, items: Sequence[Completion]
    ) -> Sequence[Completed | JobwireError]:
        """End attempts over any queues; answer each with its outcome or why it was refused."""

    def give_back(
        self,
        worker_id: str,
        assignments: Sequence[Assignment],
        claimed_after_ms: int = 0,
        *,
        sent: bool = False,
    ) -> None:
        """Return jobs that never reached their worker, in the background."""


class HeldJobs(Protocol):
    """Ends attempts without their workers' word."""

    async def end_for_lost(self, worker: LostWorker, queue: str) -> int:
        """End what a lost worker holds in one queue; return how many jobs that were."""

    async def end_unnamed(self, queue: str, worker_id: str, keep: set[str], former: Former) -> int:
        """End what a worker holds in a queue but does not know of."""


class Reports(Protocol):
    """Records reports and renews leases."""

    async def report_many(self, worker_id: str, items: Sequence[WorkerReport]) -> Sequence[Renewal]:
        """Record reports and renew leases over any queues; answer each."""

    async def renew(self, queue: str, reports: Sequence[ReportToWrite]) -> Sequence[Renewal]:
        """Record reports of one queue; answer each."""


class Registration(Protocol):
    """Lets workers go."""

    async def deregister(self, worker_id: str, session: str = "", since_ms: int = 0) -> int:
        """End a worker; return how many jobs of its went back to their queues."""


class Due(Protocol):
    """Has a queue looked at when something is due."""

    def due_in(self, queue: str, wait_ms: float) -> None:
        """Have the queue looked at in so many milliseconds."""

"""Demands: what workers are ready to take, as the dispatcher sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from jobwire_server.domain.background import heard
from jobwire_server.domain.model import Assignment, WorkerSpec


class Demand:
    """What one worker can take now, offered to the dispatchers of its queues at once.

    The dispatchers of several queues claim for one demand at the same time, so each reserves what
    it asks the store for; together they never bring more jobs than the worker can take.

    Args:
        spec: The worker.
        lease_ms: The lease of each job.
        free: How many jobs it can take.
    """

    def __init__(self, spec: WorkerSpec, lease_ms: int, free: int) -> None:
        self.spec = spec
        self.lease_ms = lease_ms
        self.free = free
        self.closed = False
        self.paused = False
        """True: takes nothing for now, whatever is free."""
        self.skipped: dict[Callable[[Demand], None], None] = {}
        """What to call once it can take jobs again: the dispatchers that found it full. In the
        order in which they came, so that queues are served in turn.
        """

    def reserve(self, most: int) -> int:
        """Reserve up to `most` jobs of what it can take; return how many there were."""
        if self.closed or self.paused:
            return 0
        count = max(0, min(self.free, most))
        self.free -= count
        return count

    def count_in(self) -> None:
        """Count in a job that the worker has already."""
        self.free -= 1

    def unreserve(self, count: int) -> None:
        """Give back what was reserved in vain, or is free again."""
        self.free += count
        self._tell_skipped()

    @property
    def open(self) -> bool:
        """True if it can take a job now."""
        return self.free > 0 and not self.paused and not self.closed

    def resume(self) -> None:
        """Take jobs again after a pause."""
        self.paused = False
        self._tell_skipped()

    def deliver(self, assignments: list[Assignment]) -> bool:
        """Hand over jobs that were reserved; return False if nobody is there to take them."""
        raise NotImplementedError

    def dry(self, queue: str) -> None:
        """A look at the queue found nothing more for this demand."""

    def failed(self, error: Exception) -> None:
        """A look at a queue failed; the dispatcher goes on trying for as long as the demand is
        open.
        """

    def _tell_skipped(self) -> None:
        if self.open and self.skipped:
            skipped, self.skipped = self.skipped, {}
            for look_again in skipped:
                look_again(self)


class OneShot(Demand):
    """The demand of one ClaimJob call: it is over with the first delivery.

    Args:
        queues: The names of the queues that it is offered to.
        patient: True to wait for jobs; False to end once every queue was found empty.
    """

    def __init__(
        self, spec: WorkerSpec, lease_ms: int, free: int, queues: tuple[str, ...], patient: bool
    ) -> None:
        super().__init__(spec, lease_ms, free)
        self.answer: asyncio.Future[list[Assignment]] = asyncio.get_running_loop().create_future()
        self._unseen = set() if patient else set(queues)
        self._patient = patient
        self._taken = False

    def deliver(self, assignments: list[Assignment]) -> bool:
        """End the demand with these jobs, or add those of another queue that came in the same
        moment.
        """
        if self.answer.cancelled() or (self.answer.done() and self.answer.exception()):
            return False
        if not self.answer.done():
            self.closed = True
            self.answer.set_result(assignments)
            return True
        if self.closed and not self._taken:
            self.answer.result().extend(assignments)
            return True
        return False

    def take(self) -> list[Assignment]:
        """Return what was delivered; what comes later is refused."""
        self._taken = True
        self.closed = True
        if self.answer.done() and not self.answer.cancelled() and not self.answer.exception():
            return self.answer.result()
        self.answer.cancel()
        return []

    def dry(self, queue: str) -> None:
        """End an impatient demand once every queue was looked at."""
        self._unseen.discard(queue)
        if not self._patient and not self._unseen and not self.answer.done():
            self.closed = True
            self.answer.set_result([])

    def failed(self, error: Exception) -> None:
        """End the demand with the error."""
        if not self.answer.done():
            self.closed = True
            heard(self.answer).set_exception(error)

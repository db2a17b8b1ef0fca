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
        self.max_bytes = 0
        """The most bytes of records that it can take; 0: whatever one claim brings."""
        self.closed = False
        self.paused = False
        """True: takes nothing for now, whatever is free."""
        self.skipped: dict[Callable[[Demand], None], None] = {}
        """What to call once it can take jobs again: the dispatchers that found it full. In the
        order in which they came, so that queues are served in turn.
        """

    def reserve(self, most: int, queue: str) -> int:
        """Reserve up to `most` jobs of a queue of what it can take; return how many there were."""
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
        if self.skipped:
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
        """A look at the queue found nothing more for this demand, or what does not fit."""

    def failed(self, error: Exception, queue: str) -> None:
        """A look at a queue failed; the dispatcher goes on trying for as long as the demand is
        open.
        """

    def slow(self, queue: str) -> None:
        """A look at a queue takes so long that others need not wait for it."""

    def _tell_skipped(self) -> None:
        if self.skipped and self.open:
            skipped, self.skipped = self.skipped, {}
            for look_again in skipped:
                look_again(self)


FULL_BYTES = 2 << 20
"""A call that brings so many bytes of records looks for no more."""
MOST_BYTES = 3 << 20
"""The most bytes of records of one call, but for a single job that is larger: with the rest of the
answer below the 4 MiB that gRPC clients take unless told otherwise.
"""
FILL_S = 0.25
"""How long a call that has jobs looks for more of them; a queue may be slow, and leases run."""


class OneShot(Demand):
    """The demand of one ClaimJob call. It fills up from its queues in turn, and is over once it is
    full or none of them had more at the last look.

    Args:
        spec: The worker.
        lease_ms: The lease of each job.
        free: How many jobs it can take.
        queues: The names of the queues that it is offered to.
        patient: True to wait for a first job; False to end once every queue was found empty.
    """

    def __init__(
        self, spec: WorkerSpec, lease_ms: int, free: int, queues: tuple[str, ...], patient: bool
    ) -> None:
        super().__init__(spec, lease_ms, free)
        self.answer: asyncio.Future[list[Assignment]] = asyncio.get_running_loop().create_future()
        self._most = free
        self._got: list[Assignment] = []
        self._bytes = 0
        self._unseen = set(queues)
        """Queues that may have jobs for it; of the others it is told when they do."""
        self._queues = len(queues)
        self._away: set[str] = set()
        """Those that failed at the last look, or take long."""
        self._patient = patient
        self._asking = False
        """One of its queues is asked for what is missing."""
        self._begins_with = queues[0] if len(queues) > 1 else ""
        """Whose turn it is, until it was asked."""
        self._timer: asyncio.TimerHandle | None = None
        self._taken = False

    def reserve(self, most: int, queue: str) -> int:
        """Reserve jobs for one queue at a time, so that the answer stays within its bytes."""
        if self._asking or self._begins_with not in ("", queue):
            return 0
        count = super().reserve(most, queue)
        self._asking = count > 0
        return count

    def unreserve(self, count: int) -> None:
        """Give back what was reserved in vain, and let the next queue have its turn."""
        self._asking, self._begins_with = False, ""
        super().unreserve(count)

    def deliver(self, assignments: list[Assignment]) -> bool:
        """Add jobs; end the demand if they fill it, or no other queue may have more."""
        if self._taken or (self.answer.done() and self.answer.exception()):
            return False
        size = self._bytes + sum(assignment.size for assignment in assignments)
        if size > MOST_BYTES and self._got:
            # The bound was that of a claim which took too long; others brought jobs meanwhile.
            return False
        self._got += assignments
        self._bytes = size
        self.max_bytes = max(1, MOST_BYTES - self._bytes)
        if len(self._got) >= self._most or self._bytes >= FULL_BYTES or not self._unseen:
            self.finish()
        elif self._timer is None and not self.closed:
            self._timer = asyncio.get_running_loop().call_later(FILL_S, self.finish)
        return True

    def finish(self) -> None:
        """End the demand with what it has; harmless if it is over."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if not self.answer.done():
            self.answer.set_result(self._got)

    def take(self) -> list[Assignment]:
        """Return what was delivered; what comes later is refused."""
        self._taken = True
        self.finish()
        if self.answer.cancelled() or self.answer.exception():
            return []
        return self._got

    def dry(self, queue: str) -> None:
        """End the demand once every queue was looked at, unless it waits for a first job."""
        self._away.discard(queue)
        self._looked(queue)

    def _looked(self, queue: str) -> None:
        self._unseen.discard(queue)
        if queue == self._begins_with:
            self._begins_with = ""
            self._tell_skipped()
        if not self._unseen and (self._got or not self._patient):
            self.finish()

    def slow(self, queue: str) -> None:
        """Go on with the others; with none left, wait for what comes of it."""
        self._away.add(queue)
        if len(self._away) < self._queues:
            self._looked(queue)

    def failed(self, error: Exception, queue: str) -> None:
        """End the demand with what it has. With nothing, go on with the queues that are left, and
        end with the error if there are none.
        """
        self._away.add(queue)
        if self._got:
            self.finish()
        elif len(self._away) < self._queues:
            self._looked(queue)
        elif not self.answer.done():
            self.closed = True
            heard(self.answer).set_exception(error)

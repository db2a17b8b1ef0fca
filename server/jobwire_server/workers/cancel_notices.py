"""Cancel notices of workers that make calls: their claims also bring the word to stop jobs.

The store keeps, for each worker, the jobs that it is to stop and was not told of. A server reads
that when a worker first claims from it, and from then on only when the store says that there is
something to read; so a claim of a worker of which nothing was cancelled costs nothing more. A
queue that can't be reached, or not soon, holds up no claim: it is read beside them, and what it
has to tell comes with a later one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextvars import Context
from time import monotonic

from jobwire_server.domain.background import heard
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import CancelNotice
from jobwire_server.store import keys
from jobwire_server.store.cancels import CancelStore
from jobwire_server.store.notices import Listener, Notices
from jobwire_server.workers.broker_parts import Attempts
from jobwire_server.workers.callers import Callers
from jobwire_server.workers.claims import Claims, ClaimWish, Handed
from jobwire_server.workers.known_workers import KnownWorkers
from jobwire_server.workers.waiting_calls import WaitingCalls

PATIENCE_S = 0.5
"""How long a claim waits for what a queue has to tell its worker."""
RETRY_S = 1.0
"""How often a queue is tried that could not be reached."""
IDLE_S = 60.0
"""A worker that has made no claim for so long is no longer listened for."""


class _Worker:
    """What is known of a worker that makes calls."""

    __slots__ = ("away", "busy", "heard_at", "polls", "queues", "told", "unread")

    def __init__(self) -> None:
        self.told: list[CancelNotice] = []
        """What was read and not told yet."""
        self.busy: dict[str, asyncio.Task[None]] = {}
        """Queue -> what listens to it or reads it for the worker now."""
        self.away: dict[str, float] = {}
        """Queues that failed or took long -> when they may be tried again."""
        self.queues: set[str] = set()
        """Those that are listened to for it."""
        self.unread: set[str] = set()
        """Those in which there may be something to tell it."""
        self.polls = 0
        self.heard_at = monotonic()

    @property
    def has_news(self) -> bool:
        """True if there may be something to tell it, as far as that can be read now."""
        if not self.unread:
            return bool(self.told)
        return bool(self.told or self.unread - self.busy.keys() - self.away.keys())


class CancelNotices:
    """Answers claims with jobs and cancellations.

    Args:
        claims: Bring the jobs.
        waiting: Calls that end when there is something to tell.
        known: The workers.
        callers: Note that they live.
        attempts: Give back jobs whose caller is gone.
        store: Where cancellations wait for the workers.
        notices: The store's channels.
    """

    def __init__(
        self,
        claims: Claims,
        waiting: WaitingCalls,
        known: KnownWorkers,
        callers: Callers,
        attempts: Attempts,
        store: CancelStore,
        notices: Notices,
    ) -> None:
        self._claims = claims
        self._waiting = waiting
        self._known = known
        self._callers = callers
        self._attempts = attempts
        self._store = store
        self._notices = notices
        self._workers: dict[str, _Worker] = {}
        self._listening: dict[str, asyncio.Task[Listener]] = {}
        self._joining: Counter[str] = Counter()
        """Queues of workers now joining, counted."""
        self._swept_at = monotonic()

    async def claim(self, wish: ClaimWish) -> Handed:
        """Lease jobs as `Claims.claim`, and tell of cancellations, which end the wait."""
        worker_id = wish.worker_id
        spec, _ = await self._known.get(worker_id)
        self._callers.hear(worker_id)
        told = await self._take(worker_id, spec.queues)
        worker = self._workers[worker_id]
        deadline = monotonic() + wish.wait_ms / 1000
        worker.polls += 1
        try:
            while True:
                left_ms = 0 if told else max(0, round((deadline - monotonic()) * 1000))
                assignments, lease_ms = await self._claims.claim(
                    worker_id,
                    wish.queues,
                    wish.max_jobs,
                    left_ms,
                    stop=lambda: worker.has_news,
                )
                woken = worker.has_news
                try:
                    told += await self.told(worker_id)
                except asyncio.CancelledError:
                    # The caller is gone, and its jobs must not wait for their leases to end.
                    self._attempts.give_back(worker_id, assignments)
                    raise
                # Woken for nothing, where messages may have been missed, it waits on.
                if assignments or told or not woken or monotonic() >= deadline:
                    return Handed(assignments, lease_ms, told)
        finally:
            worker.polls -= 1
            worker.heard_at = monotonic()

    async def told(self, worker_id: str) -> list[CancelNotice]:
        """Return what the worker is to be told of as far as this server knows; never fails.

        What can't be read now is told by a later call.
        """
        try:
            spec, _ = await self._known.get(worker_id)
            self._callers.hear(worker_id)
            return await self._take(worker_id, spec.queues)
        except JobwireError:
            return []

    async def _take(self, worker_id: str, queues: Sequence[str]) -> list[CancelNotice]:
        worker = self._workers.get(worker_id)
        if worker is None:
            await self._sweep()
            worker = self._workers.setdefault(worker_id, _Worker())
        worker.heard_at = monotonic()
        if worker.unread or not worker.queues.issuperset(queues):
            await self._catch_up(worker_id, worker, queues)
        if not worker.told:
            return []
        told, worker.told = worker.told, []
        return told

    async def _catch_up(self, worker_id: str, worker: _Worker, queues: Sequence[str]) -> None:
        """Read what there is to tell a worker; return when that is done, or takes too long."""
        now = monotonic()
        waited: dict[asyncio.Task[None], str] = {}
        for queue in worker.unread.union(queues) - (worker.queues - worker.unread):
            reading = worker.busy.get(queue)
            if reading is None:
                if worker.away.get(queue, now) > now:
                    continue
                # Not in the name of the call that happens to begin it.
                reading = asyncio.create_task(
                    self._read(worker_id, worker, queue), name="cancel-notices", context=Context()
                )
                worker.busy[queue] = heard(reading)
            if queue not in worker.away:
                waited[reading] = queue
        if waited:
            _, late = await asyncio.wait(waited, timeout=PATIENCE_S)
            for reading in late:
                worker.away[waited[reading]] = now

    async def _read(self, worker_id: str, worker: _Worker, queue: str) -> None:
        try:
            # Heard first and read then, so that nothing falls between the two.
            if queue not in worker.queues:
                self._joining[queue] += 1
                try:
                    await self._listen(queue)
                finally:
                    self._joining[queue] -= 1
                    if not self._joining[queue]:
                        del self._joining[queue]
                worker.queues.add(queue)
            worker.unread.discard(queue)
            told = await self._store.take(queue, worker_id)
        except BaseException as error:
            if queue in worker.queues:
                worker.unread.add(queue)
            worker.away[queue] = monotonic() + RETRY_S
            if not isinstance(error, JobwireError):
                raise
        else:
            worker.told += told
            if worker.away.pop(queue, None) is not None and told:
                # Its calls did not wait for this.
                self._waiting.interrupt({worker_id})
        finally:
            del worker.busy[queue]

    async def _listen(self, queue: str) -> None:
        task = self._listening.get(queue)
        if task is None:
            task = heard(asyncio.create_task(self._subscribe(queue)))
            self._listening[queue] = task
        try:
            await asyncio.shield(task)
        except JobwireError:
            if self._listening.get(queue) is task:
                del self._listening[queue]
            raise

    async def _subscribe(self, queue: str) -> Listener:
        listener = Listener(
            lambda data: self._mark(queue, set(data.decode().split(" "))),
            lambda: self._mark(queue, None),
        )
        await self._notices.listen(keys.cancels_channel(queue), listener)
        return listener

    def _mark(self, queue: str, worker_ids: set[str] | None) -> None:
        """There may be something to tell these workers, or any."""
        marked = {
            worker_id
            for worker_id in (self._workers.keys() if worker_ids is None else worker_ids)
            if (worker := self._workers.get(worker_id)) is not None and queue in worker.queues
        }
        for worker_id in marked:
            self._workers[worker_id].unread.add(queue)
        if marked:
            self._waiting.interrupt(marked)

    async def _sweep(self) -> None:
        """Let go of workers that make no more calls, and of queues that none of them serves."""
        now = monotonic()
        if now - self._swept_at < IDLE_S:
            return
        self._swept_at = now
        for worker_id, worker in [*self._workers.items()]:
            if not worker.polls and now - worker.heard_at > IDLE_S:
                del self._workers[worker_id]
        used = {queue for worker in self._workers.values() for queue in worker.queues}
        for queue, task in [*self._listening.items()]:
            # Asked anew for each that goes, because workers come while the one before is let go.
            unused = queue not in used and not self._is_used(queue)
            if unused and task.done() and self._listening.get(queue) is task:
                del self._listening[queue]
                if not task.exception():
                    await self._notices.silence(keys.cancels_channel(queue), task.result())

    def _is_used(self, queue: str) -> bool:
        workers = self._workers.values()
        return queue in self._joining or any(queue in worker.queues for worker in workers)

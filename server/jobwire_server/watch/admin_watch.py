"""Watching the queues and the workers as operators do: as they stand, then what changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from time import monotonic
from typing import Protocol

from jobwire_server.domain.errors import ServerDraining
from jobwire_server.domain.model import Queue, Worker
from jobwire_server.store import keys
from jobwire_server.store.notices import Listener, Notices
from jobwire_server.store.queues import QueueStore
from jobwire_server.watch.job_watch import JobWatch
from jobwire_server.watch.queue_watch import CAUGHT_UP, CaughtUp

AT_ONCE = 200
"""Workers of one read."""
QUEUES_AT_ONCE = 500
"""Queues of one answer, which clients take by default."""
PAUSES = 4
"""How many times as long as a look at queues the pause behind it is at least."""
DRAIN_LOOK_S = 0.5
"""How soon a stream notices that the server drains."""


class Workers(Protocol):
    """Where workers are read, with the leases that they hold."""

    async def find_worker(self, worker_id: str) -> Worker | None:
        """Return one worker, None if it is not known."""

    async def workers_after(self, worker_id: str, most: int) -> list[Worker]:
        """Return up to so many workers whose ids sort behind another."""


class AdminWatch:
    """Feeds WatchWorkers and WatchQueues.

    Args:
        jobs: Knows whether the server drains, and how long a stream may be quiet.
        notices: Where changes of workers are told.
        queues: Where queues are read.
        workers: Where workers are read.
    """

    def __init__(
        self,
        jobs: JobWatch,
        notices: Notices,
        queues: QueueStore,
        workers: Workers,
    ) -> None:
        self._jobs = jobs
        self._notices = notices
        self._queues = queues
        self._workers = workers

    async def watch_workers(self, queue: str = "") -> AsyncIterator[Worker | CaughtUp | str | None]:
        """Yield each worker as it stands, CAUGHT_UP, then each again as it changes.

        The id of a worker says that it left; None is a sign of life. Counters alone are no change.

        Args:
            queue: Only the workers that serve it; '': all. Of the others it is told that they left.

        Raises:
            ServerDraining: The server shuts down.
        """
        changed: dict[str, None] = {}
        wake = asyncio.Event()
        missed = False

        def on_message(data: bytes) -> None:
            changed[data.decode().partition(" ")[0]] = None
            wake.set()

        def on_reset() -> None:
            nonlocal missed
            missed = True
            wake.set()

        listener = Listener(on_message, on_reset)
        await self._notices.listen(keys.WORKER_EVENTS, listener)
        known: dict[str, Worker] = {}
        try:
            async for worker in self._all_workers():
                known[worker.spec.worker_id] = worker
                if not queue or queue in worker.spec.queues:
                    yield worker
            yield CAUGHT_UP
            while True:
                self._check_draining()
                if missed:
                    missed = False
                    present = [worker.spec.worker_id async for worker in self._all_workers()]
                    changed.update(dict.fromkeys([*present, *known]))
                while changed:
                    worker_id = next(iter(changed))
                    del changed[worker_id]
                    found = await self._workers.find_worker(worker_id)
                    if found is None:
                        if known.pop(worker_id, None) is not None:
                            yield worker_id
                    elif _identity(found) != _identity(known.get(worker_id)):
                        known[worker_id] = found
                        if not queue or queue in found.spec.queues:
                            yield found
                if not await self._wait(wake):
                    yield None
        finally:
            await self._notices.silence(keys.WORKER_EVENTS, listener)

    async def watch_queues(
        self, names: Sequence[str], interval_s: float
    ) -> AsyncIterator[list[Queue]]:
        """Yield the queues that changed since the last look; the first time all of them.

        Args:
            names: The queues; empty: all there are.
            interval_s: How often to look, seconds.

        Raises:
            ServerDraining: The server shuts down.
        """
        told: dict[str, Queue] = {}
        quiet_s = 0.0
        while True:
            self._check_draining()
            news = []
            began = monotonic()
            for name in names or await self._queues.names():
                queue = await self._queues.read(name, detail=True)
                if told.get(name) is None or _numbers(queue) != _numbers(told[name]):
                    told[name] = queue
                    news.append(queue)
            # Whoever watches many queues at a short interval is told of them less often instead of
            # having the store read them without a pause.
            pause_s = max(interval_s, PAUSES * (monotonic() - began))
            quiet_s = 0.0 if news else quiet_s + pause_s
            if news or quiet_s >= self._jobs.bookmark_s:
                quiet_s = 0.0
                for at in range(0, max(1, len(news)), QUEUES_AT_ONCE):
                    yield news[at : at + QUEUES_AT_ONCE]
            await self._pause(pause_s)

    async def _all_workers(self) -> AsyncIterator[Worker]:
        after = ""
        while True:
            some = await self._workers.workers_after(after, AT_ONCE)
            for worker in some:
                yield worker
            if len(some) < AT_ONCE:
                return
            after = some[-1].spec.worker_id

    async def _wait(self, wake: asyncio.Event) -> bool:
        """Wait for a change; return False when it is time for a sign of life."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._jobs.bookmark_s
        while loop.time() < until:
            self._check_draining()
            try:
                async with asyncio.timeout(DRAIN_LOOK_S):
                    await wake.wait()
            except TimeoutError:
                continue
            wake.clear()
            return True
        return False

    async def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0:
            await asyncio.sleep(min(left, DRAIN_LOOK_S))
            self._check_draining()

    def _check_draining(self) -> None:
        if self._jobs.draining:
            raise ServerDraining


def _identity(worker: Worker | None) -> object:
    """What counts as a change of a worker."""
    if worker is None:
        return None
    return (worker.spec, worker.status, worker.attached, worker.server_id, worker.credits)


def _numbers(queue: Queue) -> Queue:
    """What counts as a change of a queue: all but the moment at which it was read."""
    # Rates go on changing for a while after the last job, and so do the samples they come from.
    return replace(queue, now_ms=0)

"""Watching the queues and the workers as operators do: as they stand, then what changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from math import inf
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
MOVES_S = 1.0
"""How often it is told that a worker holds more jobs or fewer, at most."""
MOVED_AT_ONCE = 200
"""Workers of one such look."""
DRAIN_LOOK_S = 0.5
"""How soon a stream notices that the server drains."""


class Workers(Protocol):
    """Where workers are read, with the leases that they hold."""

    async def find_worker(self, worker_id: str) -> Worker | None:
        """Return one worker, None if it is not known."""

    async def workers_after(self, worker_id: str, most: int) -> list[Worker]:
        """Return up to so many workers whose ids sort behind another."""

    async def moved(self, worker_ids: Sequence[str]) -> tuple[list[Worker], Sequence[str]]:
        """Return these workers without their leases, and the ids of those to be read later."""


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

        The id of a worker says that it left; None is a sign of life. Of counters only the number of
        held jobs and the credits are a change, told once a second at most.

        Args:
            queue: Only the workers that serve it; '': all. Of the others it is told that they left.

        Raises:
            ServerDraining: The server shuts down.
        """
        changed: dict[str, None] = {}
        moved: dict[str, None] = {}
        look_at = 0.0
        wake = asyncio.Event()
        missed = False

        def on_message(data: bytes) -> None:
            changed[data.decode().partition(" ")[0]] = None
            wake.set()

        def on_reset() -> None:
            nonlocal missed
            missed = True
            wake.set()

        def on_moves(data: bytes) -> None:
            moved.update(dict.fromkeys(data.decode().split(" ")))
            wake.set()

        listener, moves = Listener(on_message, on_reset), Listener(on_moves, lambda: None)
        await self._notices.listen(keys.WORKER_EVENTS, listener)
        known: dict[str, Worker] = {}
        loop = asyncio.get_running_loop()
        try:
            await self._notices.listen(keys.WORKER_MOVES, moves)
            async for worker in self._all_workers():
                known[worker.spec.worker_id] = worker
                if not queue or queue in worker.spec.queues:
                    yield worker
            yield CAUGHT_UP
            told_at = loop.time()
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
                            told_at = loop.time()
                if moved and loop.time() >= look_at:
                    look_at = loop.time() + MOVES_S
                    for worker in await self._moved(moved, known):
                        if not queue or queue in worker.spec.queues:
                            yield worker
                            told_at = loop.time()
                until = told_at + self._jobs.bookmark_s
                if not await self._wait(wake, until, look_at if moved else inf):
                    yield None
                    told_at = loop.time()
        finally:
            await self._notices.silence(keys.WORKER_EVENTS, listener)
            await self._notices.silence(keys.WORKER_MOVES, moves)

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

    async def _moved(self, moved: dict[str, None], known: dict[str, Worker]) -> list[Worker]:
        """Return those of the workers known here that hold more jobs now, or fewer.

        Args:
            moved: The ids to look at; what is left is for later.
            known: The workers as they were told last.
        """
        some = [*moved][:MOVED_AT_ONCE]
        workers, later = await self._workers.moved(some)
        for worker_id in some:
            del moved[worker_id]
        moved.update(dict.fromkeys(later))
        news = []
        for worker in workers:
            before = known.get(worker.spec.worker_id)
            # Of one that is new here another notice tells.
            if before is not None and _identity(worker) != _identity(before):
                known[worker.spec.worker_id] = worker
                news.append(worker)
        return news

    async def _wait(self, wake: asyncio.Event, until: float, look_at: float) -> bool:
        """Wait for a change, or for a moment; return False when it is time for a sign of life."""
        loop = asyncio.get_running_loop()
        while (now := loop.time()) < until:
            if now >= look_at:
                return True
            self._check_draining()
            try:
                async with asyncio.timeout(min(DRAIN_LOOK_S, look_at - now)):
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
    return (
        *(worker.spec, worker.status, worker.attached, worker.server_id),
        *(worker.credits, worker.held_jobs, worker.told),
    )


def _numbers(queue: Queue) -> Queue:
    """What counts as a change of a queue: all but the moment at which it was read."""
    # Rates go on changing for a while after the last job, and so do the samples they come from.
    return replace(queue, now_ms=0)

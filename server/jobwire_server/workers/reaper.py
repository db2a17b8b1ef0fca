"""The reaper: finds workers that fell silent and takes their jobs back at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.workers import LostWorker, WorkerStore
from jobwire_server.workers.attention import Attention

log = structlog.get_logger(__name__)

AT_ONCE = 100
PERIOD_S = 0.5
"""At most about this long after its timeout a silent worker is lost. Each look also tells the other
servers that this one is there.
"""

TakeBack = Callable[[LostWorker, str], Awaitable[int]]


class Reaper:
    """Sweeps the worker registry. `start` and `stop` are idempotent.

    Args:
        store: The registry.
        options: The worker timeout and how long lost workers are listed.
        take_back: Returns what a lost worker holds in one queue; answers how many jobs.
    """

    def __init__(self, store: WorkerStore, options: BrokerOptions, take_back: TakeBack) -> None:
        self._store = store
        self._options = options
        self._take_back = take_back
        self._attention = Attention(options.patience_s)
        self._task: asyncio.Task[None] | None = None
        self._sweeping = asyncio.Lock()
        """Each worker that is lost has a sweep made; at once they would all do the same work."""

    def start(self) -> None:
        """Begins."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="reaper")

    async def stop(self) -> None:
        """Ends; tolerates never started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def sweep(self, judge_until_ms: int = 0) -> None:
        """One look at the registry, after those that are under way.

        Args:
            judge_until_ms: The store's time until which the look may tell who is silent; 0: it is
                only about those that are known to be lost.
        """
        async with self._sweeping:
            await self._sweep(judge_until_ms)

    async def _sweep(self, judge_until_ms: int) -> None:
        now_ms, lost = await self._store.sweep(
            self._options.worker_timeout_ms,
            self._options.retain_lost_workers_ms,
            AT_ONCE,
            judge_until_ms,
        )
        self._attention.looked(now_ms, 2 * PERIOD_S)
        for worker in lost:
            self._attention.still()
            # Side by side: that the node of one queue is away keeps no other queue, and no other
            # worker, waiting.
            outcomes = await asyncio.gather(
                *(self._take_back(worker, queue) for queue in worker.queues),
                return_exceptions=True,
            )
            errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            for error in errors:
                if not isinstance(error, JobwireError):
                    raise error
            if errors:
                log.debug("jobs of a lost worker not all back", worker_id=worker.worker_id)
                continue
            # Only now: a server that dies in between leaves the rest to the others.
            await self._store.jobs_are_back(worker.worker_id)
            jobs = sum(outcome for outcome in outcomes if isinstance(outcome, int))
            log.warning("worker lost", worker_id=worker.worker_id, jobs_taken_back=jobs)

    async def _run(self) -> None:
        period = min(PERIOD_S, self._options.worker_timeout_ms / 4000)
        while True:
            try:
                await self.sweep(self._attention.not_after_ms())
            except JobwireError as error:
                log.debug("workers not swept", error=error.message)
            except Exception:
                log.exception("workers not swept")
            await asyncio.sleep(period * (0.75 + random.random() / 2))

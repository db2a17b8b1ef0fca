"""The reaper: finds workers that fell silent and takes their jobs back at once."""

from __future__ import annotations

import asyncio
import random

import structlog

from jobwire_server.domain.background import Loop
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.workers import WorkerStore
from jobwire_server.workers.attention import Attention
from jobwire_server.workers.broker_parts import HeldJobs

log = structlog.get_logger(__name__)

AT_ONCE = 100
PERIOD_S = 0.5
"""At most about this long after its timeout a silent worker is lost. Each look also tells the other
servers that this one is there.
"""


class Reaper:
    """Sweeps the worker registry. `start` and `stop` are idempotent.

    Args:
        store: The registry.
        options: The worker timeout and how long lost workers are listed.
        held: Ends what a lost worker holds.
    """

    def __init__(self, store: WorkerStore, options: BrokerOptions, held: HeldJobs) -> None:
        self._store = store
        self._options = options
        self._held = held
        self._attention = Attention(options.patience_s)
        self._period_s = min(PERIOD_S, options.worker_timeout_ms / 4000)
        self._loop = Loop("reaper", self._judge, error_pause_s=self._period_s)
        self._sweeping = asyncio.Lock()
        """Each lost worker triggers a sweep; at once they would all do the same work."""

    def start(self) -> None:
        """Begin."""
        self._loop.start()

    async def stop(self) -> None:
        """End; tolerates never started."""
        await self._loop.stop()

    async def sweep(self, judge_until_ms: int = 0) -> None:
        """Look at the registry once, after those that are under way.

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
                *(self._held.end_for_lost(worker, queue) for queue in worker.queues),
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

    async def _judge(self) -> float:
        await self.sweep(self._attention.not_after_ms())
        return self._period_s * random.uniform(0.75, 1.25)

"""Whether jobs are done: each of them, once, and with its result in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from jobwire_server.domain.model import JobState

from benchmarks import jobs
from benchmarks.frame import check
from benchmarks.parts import Part
from benchmarks.processes import until
from benchmarks.stores import Store

QUEUE = "default"
DEADLINE_S = 120.0
LOOK_S = 0.01
"""How often the queue is looked at for the end; what a round's time may be wrong by."""


class Done:
    """Counts the jobs that are to be done, and checks that they are.

    Args:
        store: Where they are.
        worker: A part that tells its own counts (`benchmarks.working`); None: there is none.
        backlog: How many others wait in the queue all the time.
    """

    def __init__(self, store: Store, worker: Part | None = None, backlog: int = 0) -> None:
        self._queues = jobs.Layers(store).queues
        self._worker = worker
        self._backlog = backlog
        self.count = 0
        """Jobs that have been through."""

    async def all_of(self, count: int, tasks: Sequence[asyncio.Task[Any]] = ()) -> None:
        """Waits until so many more jobs have their results in the store.

        Args:
            count: So many.
            tasks: That must not end meanwhile.

        Raises:
            TimeoutError: They have not after DEADLINE_S.
        """
        self.count += count

        async def all_done() -> bool:
            for task in tasks:
                if task.done():
                    task.result()
            depth = (await self._queues.read(QUEUE, detail=False)).counts
            return depth.get(JobState.SUCCEEDED, 0) >= self.count

        what = f"{self.count:,} jobs are done"
        await until(all_done, what, timeout_s=DEADLINE_S, pause_s=LOOK_S)

    async def check(self) -> None:
        """Checks that each job was submitted, started, handled and finished exactly once."""
        queue = await self._queues.read(QUEUE, detail=False)
        expected = {JobState.SUCCEEDED: self.count}
        if self._backlog:
            expected[JobState.PENDING] = self._backlog
        check(
            dict(queue.counts) == expected, f"of {self.count:,} jobs the queue has {queue.counts}"
        )
        totals = {name: queue.totals.get(name, 0) for name in ("submitted", "started", "succeeded")}
        totals["submitted"] -= self._backlog
        check(set(totals.values()) == {self.count}, f"of {self.count:,} jobs: {totals}")
        if self._worker is None:
            return
        said = await self._worker.ask("stats")
        counts = {name: said[name] for name in ("assigned", "handled", "succeeded")}
        check(set(counts.values()) == {self.count}, f"of {self.count:,} jobs the worker: {counts}")
        check(said["lost"] == said["released"] == said["failed"] == 0, f"the worker: {said}")

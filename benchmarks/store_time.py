"""store-time: what a job costs the store from its submission to its stored result.

Size: `jobs` jobs through each implementation in each round, in batches of 100.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.ids import ULID
from jobwire_server.domain.model import Assignment, JobState, NewJob
from jobwire_server.store.attempts import SuccessToWrite
from jobwire_server.store.claims import ClaimRequest

from benchmarks import jobs
from benchmarks.figures import Figure, Goal, compared
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.minimal import GATHERED, PLAIN, MinimalQueue
from benchmarks.stores import Store, open_store

BATCH = 100
RECORD_BYTES = 320
RESULT = b"r" * 32
STEPS = ("submit", "claim", "succeed")
GOAL = Goal("at most", 2.0)
QUEUE, WORKER, LEASE_MS, RETENTION_MS = "default", "worker", 600_000, 86_400_000


class Implementation(Protocol):
    """Takes batches through the three steps."""

    async def submit(self, batch: list[NewJob]) -> int:
        """Stores jobs; returns how many."""

    async def claim(self) -> int:
        """Leases a batch; returns how many."""

    async def succeed(self) -> int:
        """Ends the batch that was leased longest ago; returns how many."""


class Jobwire:
    """The product's store layer."""

    def __init__(self, store: Store) -> None:
        self._layers = jobs.Layers(store)
        self._held: list[list[Assignment]] = []
        routes = (route_of(jobs.OPERATION, {}).id,)
        self._request = ClaimRequest(WORKER, BATCH, LEASE_MS, routes)

    async def submit(self, batch: list[NewJob]) -> int:
        answers = await self._layers.jobs.submit(QUEUE, batch)
        return sum(
            not isinstance(answer, JobwireError) and answer.state is JobState.PENDING
            for answer in answers
        )

    async def claim(self) -> int:
        (claimed,) = await self._layers.jobs.claim(QUEUE, [self._request], RETENTION_MS)
        self._held.append(claimed.assignments)
        return len(claimed.assignments)

    async def succeed(self) -> int:
        ends = [
            SuccessToWrite(job.job_id[ULID], WORKER, job.fencing_token, RESULT)
            for job in self._held.pop(0)
        ]
        answers = await self._layers.jobs.succeed(QUEUE, ends, RETENTION_MS)
        return sum(not isinstance(answer, JobwireError) for answer in answers)

    async def check(self, done: int) -> None:
        """Checks that so many jobs have succeeded and nothing else is there."""
        depth = (await self._layers.queues.read(QUEUE, detail=False)).counts
        check(depth == {JobState.SUCCEEDED: done}, f"the queue holds {depth}, not {done} results")


class Minimal:
    """The yardstick."""

    def __init__(self, queue: MinimalQueue) -> None:
        self._queue = queue
        self._held: list[list[str]] = []

    async def submit(self, batch: list[NewJob]) -> int:
        return await self._queue.submit([(job.job_id[ULID], job.record) for job in batch])

    async def claim(self) -> int:
        ids = await self._queue.claim(BATCH, time.time_ns() // 1_000_000 + LEASE_MS)
        self._held.append(ids)
        return len(ids)

    async def succeed(self) -> int:
        return await self._queue.finish(self._held.pop(0), RESULT)


@dataclass(slots=True)
class Side:
    """An implementation and what was measured of it, in microseconds a job."""

    implementation: Implementation
    script_us: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in STEPS})
    cpu_us: list[float] = field(default_factory=list)

    @property
    def total_us(self) -> list[float]:
        """The scripts' time through the whole life, round by round."""
        return [sum(steps) for steps in zip(*self.script_us.values(), strict=True)]

    async def measure(self, store: Store, batches: list[list[NewJob]]) -> None:
        """Takes the batches through their whole life."""
        count = sum(len(batch) for batch in batches)
        cpu = await store.cpu_us()
        todo: dict[str, list[Callable[[], Awaitable[int]]]] = {
            "submit": [lambda batch=batch: self.implementation.submit(batch) for batch in batches],  # type: ignore[misc]
            "claim": [self.implementation.claim] * len(batches),
            "succeed": [self.implementation.succeed] * len(batches),
        }
        for step, calls in todo.items():
            before = await store.script_us()
            done = 0
            for call in calls:
                done += await call()
            self.script_us[step].append((await store.script_us() - before) / count)
            check(done == count, f"{step}: {done} of {count} jobs")
        self.cpu_us.append((await store.cpu_us() - cpu) / count)

    def forget(self) -> None:
        """Drops what was measured so far."""
        for values in self.script_us.values():
            values.clear()
        self.cpu_us.clear()


async def run(plan: Plan) -> list[Figure]:
    """Measures the implementations by turns on one store."""
    count, rounds = plan.size.jobs - plan.size.jobs % BATCH, plan.size.rounds
    async with open_store(plan.engine) as store:
        jobwire = Jobwire(store)
        sides = [Side(jobwire)]
        for name, sources in (("plain", PLAIN), ("gathered", GATHERED)):
            queue = MinimalQueue(store, f"minimal:{{{name}}}:", sources)
            await queue.load()
            sides.append(Side(Minimal(queue)))
        maker = jobs.JobMaker()

        def batches(total: int) -> list[list[NewJob]]:
            return [
                [job._replace(record=os.urandom(RECORD_BYTES)) for job in batch]
                for batch in maker.batches(total, BATCH)
            ]

        for side in sides:  # loads the scripts, and is not counted
            await side.measure(store, batches(BATCH))
            side.forget()
        for number in range(rounds):
            if number % 10 == 0:
                plan.say(f"round {number + 1} of {rounds}")
            # There and back, so that no side always comes first.
            for side in sides if number % 2 else reversed(sides):
                await side.measure(store, batches(count))
        await jobwire.check(BATCH + rounds * count)
    ours, plain, gathered = sides
    against = "three minimal scripts"
    figures = [
        compared(
            "scripts a job",
            ours.total_us,
            "us",
            against=against,
            base=plain.total_us,
            goal=GOAL,
        )
    ]
    figures += [
        compared(
            f"  {step}",
            ours.script_us[step],
            "us",
            against="the minimal",
            base=plain.script_us[step],
        )
        for step in STEPS
    ]
    figures += [
        compared(
            "scripts a job, strict",
            ours.total_us,
            "us",
            against="minimal scripts that gather commands",
            base=gathered.total_us,
        ),
        compared("store CPU a job", ours.cpu_us, "us", against=against, base=plain.cpu_us),
    ]
    return figures


BENCHMARK = Benchmark(
    name="store-time",
    summary="the store's time for a job's whole life against three minimal scripts",
    run=run,
    full=Size(jobs=1_000, rounds=100),
    short=Size(jobs=1_000, rounds=20),
)

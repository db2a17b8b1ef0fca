"""drain: what waits is worked off, by async handlers and by sync ones, in one worker process and
in two.

Size: `jobs` jobs in each round, of each kind of worker.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter

from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.ids import ULID
from jobwire_server.domain.model import JobState
from jobwire_server.store.attempts import SuccessToWrite
from jobwire_server.store.claims import ClaimRequest

from benchmarks import jobs
from benchmarks.done import QUEUE, Done
from benchmarks.end_to_end import (
    BATCH,
    CONCURRENCY,
    LEASE_MS,
    PREFETCH,
    RETENTION_MS,
    STORE_CALLERS,
)
from benchmarks.figures import Figure, Goal, compared, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.parts import Part, module, open_part
from benchmarks.processes import cpu_s
from benchmarks.servers import Server, open_broker
from benchmarks.stores import Store, open_store

WARM_UP = 1_000
MANY = 4 * (CONCURRENCY + PREFETCH)
"""So many that no worker takes them all at once."""
KINDS = ("async", "sync")
PROCESSES = (1, 2)
GOAL = Goal("at least", 1.0)
"""For two worker processes against one."""


@dataclass(slots=True)
class Shares:
    """CPU time that processes used during a drain, as shares of a core."""

    store: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    workers: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Drained:
    """A broker with worker processes that serve it, and the rates at which they emptied it."""

    store: Store
    server: Server
    workers: list[Part]
    done: Done
    maker: jobs.JobMaker
    rates: list[float] = field(default_factory=list)
    shares: Shares = field(default_factory=Shares)

    async def measure(self, count: int) -> None:
        """Fills the paused queue, and counts from when it is let go to the last stored result."""
        layers = jobs.Layers(self.store)
        await layers.queues.set_paused(QUEUE, True)
        await jobs.fill(layers, QUEUE, count, self.maker, lambda text: None)
        before = await self._cpu_s()
        began = perf_counter()
        await layers.queues.set_paused(QUEUE, False)
        await self.done.all_of(count)
        took = perf_counter() - began
        used = [(now - then) / took for now, then in zip(await self._cpu_s(), before, strict=True)]
        self.rates.append(count / took)
        self.shares.store.append(used[0])
        self.shares.server.append(used[1])
        self.shares.workers.append(used[2])

    async def _cpu_s(self) -> tuple[float, float, float]:
        workers = sum(cpu_s(worker.pid) for worker in self.workers)
        return await self.store.cpu_us() / 1e6, self.server.cpu_s(), workers

    async def check(self) -> None:
        """Checks that each job was run once, and that each of the workers had its part."""
        await self.done.check()
        counts = [await worker.ask("stats") for worker in self.workers]
        for name in ("assigned", "handled", "succeeded"):
            total = sum(one[name] for one in counts)
            check(total == self.done.count, f"{name} of {self.done.count:,} jobs: {total:,}")
        for one in counts:
            check(one["lost"] == one["released"] == one["failed"] == 0, f"a worker: {one}")
        if self.done.count > MANY:
            check(all(one["handled"] for one in counts), "a worker process was given no job")


@asynccontextmanager
async def _open_drained(plan: Plan, kind: str, processes: int) -> AsyncIterator[Drained]:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        server = await stack.enter_async_context(open_broker(store))
        program = module("benchmarks.working", server.address, CONCURRENCY, PREFETCH, kind)
        workers = [await stack.enter_async_context(open_part(program)) for _ in range(processes)]
        drained = Drained(store, server, workers, Done(store), jobs.JobMaker())
        await drained.measure(max(min(WARM_UP, plan.size.jobs), 2 * BATCH))
        drained.rates.clear()
        drained.shares = Shares()
        yield drained
        await drained.check()


class StoreOnly:
    """The scripts that a drain takes, called by the hundred with nothing in between."""

    def __init__(self, store: Store) -> None:
        self._layers = jobs.Layers(store)
        self._maker = jobs.JobMaker()
        self._request = ClaimRequest("bench", BATCH, LEASE_MS, (route_of(jobs.OPERATION, {}).id,))
        self._done = 0
        self.rates: list[float] = []

    async def measure(self, count: int) -> None:
        """Claims and completes jobs that wait."""
        await jobs.fill(self._layers, QUEUE, count, self._maker, lambda text: None)
        before = self._done
        began = perf_counter()
        await jobs.each(-(-count // BATCH), STORE_CALLERS, self._life)
        self.rates.append(count / (perf_counter() - began))
        check(self._done - before == count, f"{self._done - before:,} of {count:,} jobs")

    async def _life(self, number: int) -> None:
        (claimed,) = await self._layers.jobs.claim(QUEUE, [self._request], RETENTION_MS)
        ends = [
            SuccessToWrite(job.job_id[ULID], "bench", job.fencing_token, b"done")
            for job in claimed.assignments
        ]
        answers = await self._layers.jobs.succeed(QUEUE, ends, RETENTION_MS)
        check(not any(isinstance(answer, JobwireError) for answer in answers), "a job was refused")
        self._done += len(answers)

    async def check(self) -> None:
        """Checks that all are done."""
        counts = (await self._layers.queues.read(QUEUE, detail=False)).counts
        check(counts == {JobState.SUCCEEDED: self._done}, f"the queue holds {counts}")


async def run(plan: Plan) -> list[Figure]:
    """Measures all by turns, each on a store and a server of its own."""
    count = plan.size.jobs
    async with AsyncExitStack() as stack:
        alone = StoreOnly(await stack.enter_async_context(open_store(plan.engine)))
        sides = {
            (kind, processes): await stack.enter_async_context(_open_drained(plan, kind, processes))
            for kind in KINDS
            for processes in PROCESSES
        }
        for number in range(plan.size.rounds):
            plan.say(f"round {number + 1} of {plan.size.rounds}")
            await alone.measure(count)
            # There and back, so that no side always comes first.
            for side in [*sides.values()][:: -1 if number % 2 else 1]:
                await side.measure(count)
        await alone.check()
    figures: list[Figure] = []
    for kind in KINDS:
        figures += _figures(kind, sides[kind, 1], sides[kind, 2], alone)
    return figures


def _figures(kind: str, one: Drained, two: Drained, alone: StoreOnly) -> list[Figure]:
    def of_the_store(name: str, rates: list[float]) -> Figure:
        against = "the store alone"
        return compared(name, rates, "jobs/s", against=against, base=alone.rates)

    against = "one worker process"
    figures = [
        of_the_store(f"{kind} handler", one.rates),
        of_the_store(f"{kind}, two processes", two.rates),
        compared(
            f"{kind}, two against one",
            *(two.rates, "jobs/s"),
            against=against,
            base=one.rates,
            goal=GOAL,
        ),
    ]
    for name, side in (("one", one), ("two", two)):
        figures += [
            measured(f"  {kind}, {name}: {part}", values, "of a core")
            for part, values in (
                ("store", side.shares.store),
                ("server", side.shares.server),
                ("workers", side.shares.workers),
            )
        ]
    return figures


BENCHMARK = Benchmark(
    name="drain",
    summary="a backlog worked off by async and by sync handlers, in one worker process and in two",
    run=run,
    full=Size(jobs=20_000, rounds=5),
    short=Size(jobs=4_000, rounds=2),
)

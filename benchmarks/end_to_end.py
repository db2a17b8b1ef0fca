"""end-to-end: one producer, one server and one worker, each a process, against the store alone.

Size: `jobs` jobs in each round, of each way to measure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.ids import ULID
from jobwire_server.domain.model import JobState, NewJob
from jobwire_server.store.attempts import SuccessToWrite
from jobwire_server.store.claims import ClaimRequest

from benchmarks import backlogged, jobs
from benchmarks.done import Done
from benchmarks.figures import Figure, Goal, compared, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.parts import Part, module, open_part
from benchmarks.servers import Server, open_broker
from benchmarks.stores import Store, open_store

QUEUE = "default"
BATCH = 100
BATCHES_IN_FLIGHT = 16
CONCURRENCY, PREFETCH = 500, 500
"""Together the credits of its stream."""
STORE_CALLERS = 3
"""Enough that the store always has the next call at hand."""
LEASE_MS, RETENTION_MS = 600_000, 86_400_000
WARM_UP = 2_000
GOAL = Goal("at least", 0.4)


@dataclass(slots=True)
class Flow:
    """A broker with a producer and a worker, each in a process of its own."""

    store: Store
    server: Server
    producer: Part
    done: Done

    async def through(self, count: int) -> float:
        """Submits jobs while they are worked; returns the jobs a second from the first to the last.

        The last is the one whose result is the last to be stored.
        """
        began = perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.producer.ask(str(count)))
            await self.done.all_of(count)
            took = perf_counter() - began
        return count / took

    async def apart(self, count: int) -> tuple[float, float]:
        """Submits jobs to a paused queue, then lets it go; returns the jobs a second of each."""
        queues = jobs.Layers(self.store).queues
        await queues.set_paused(QUEUE, True)
        answer = await self.producer.ask(str(count))
        await queues.set_paused(QUEUE, False)
        began = perf_counter()
        await self.done.all_of(count)
        return count / answer["took_s"], count / (perf_counter() - began)


@asynccontextmanager
async def open_flow(plan: Plan, backlog: int = 0) -> AsyncIterator[Flow]:
    """Starts and warms up a store, a server, a producer and a worker; checks the jobs at the end.

    Args:
        plan: Says which store.
        backlog: How many jobs wait on another route of the queue.
    """
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        server = await stack.enter_async_context(open_broker(store, profile=plan.profile("server")))
        if backlog:
            await backlogged.fill(store, plan, backlog)
        producing = module(
            "benchmarks.producing",
            *(server.address, BATCH, BATCHES_IN_FLIGHT),
            profile=plan.profile("producer"),
        )
        working = module(
            "benchmarks.working",
            *(server.address, CONCURRENCY, PREFETCH),
            profile=plan.profile("worker"),
        )
        producer = await stack.enter_async_context(open_part(producing))
        worker = await stack.enter_async_context(open_part(working))
        flow = Flow(store, server, producer, Done(store, worker, backlog))
        await flow.through(WARM_UP)
        yield flow
        await flow.done.check()


class StoreOnly:
    """The product's scripts called by the hundred, with nothing in between.

    Args:
        store: Where.
    """

    def __init__(self, store: Store) -> None:
        self._layers = jobs.Layers(store)
        self._maker = jobs.JobMaker()
        self._request = ClaimRequest("bench", BATCH, LEASE_MS, (route_of(jobs.OPERATION, {}).id,))
        self.done = 0

    async def through(self, count: int) -> float:
        """Takes jobs through their whole life; returns the jobs a second."""
        batches = [*self._maker.batches(count, BATCH)]
        began = perf_counter()

        async def life(number: int) -> None:
            await self._life(batches[number])

        await jobs.each(len(batches), STORE_CALLERS, life)
        return count / (perf_counter() - began)

    async def _life(self, batch: list[NewJob]) -> None:
        await self._layers.jobs.submit(QUEUE, batch)
        (claimed,) = await self._layers.jobs.claim(QUEUE, [self._request], RETENTION_MS)
        ends = [
            SuccessToWrite(job.job_id[ULID], "bench", job.fencing_token, b"done")
            for job in claimed.assignments
        ]
        answers = await self._layers.jobs.succeed(QUEUE, ends, RETENTION_MS)
        check(not any(isinstance(answer, JobwireError) for answer in answers), "a job was refused")
        self.done += len(answers)

    async def check(self, done: int) -> None:
        """Checks that so many jobs have been through."""
        check(self.done == done, f"{self.done:,} of {done:,} jobs")
        depth = (await self._layers.queues.read(QUEUE, detail=False)).counts
        check(depth == {JobState.SUCCEEDED: done}, f"the queue holds {depth}")


async def run(plan: Plan) -> list[Figure]:
    """Measures the whole and the store alone by turns."""
    count, rounds = plan.size.jobs, plan.size.rounds
    rates: list[float] = []
    submitting: list[float] = []
    working: list[float] = []
    bare: list[float] = []
    server_us: list[float] = []
    store_us: list[float] = []
    async with open_flow(plan) as flow, open_store(plan.engine) as other:
        alone = StoreOnly(other)
        await alone.through(WARM_UP)
        for number in range(rounds):
            plan.say(f"round {number + 1} of {rounds}")
            bare.append(await alone.through(count))
            server, store = flow.server.cpu_s(), await flow.store.cpu_us()
            rates.append(await flow.through(count))
            server_us.append((flow.server.cpu_s() - server) * 1e6 / count)
            store_us.append((await flow.store.cpu_us() - store) / count)
            first, second = await flow.apart(count)
            submitting.append(first)
            working.append(second)
        await alone.check(WARM_UP + rounds * count)
    against = "the store alone"
    return [
        compared("submit to done", rates, "jobs/s", against=against, base=bare, goal=GOAL),
        measured("  submit, nobody works", submitting, "jobs/s"),
        measured("  work, nobody submits", working, "jobs/s"),
        measured("server CPU a job", server_us, "us"),
        measured("store CPU a job", store_us, "us"),
    ]


async def run_backlog(plan: Plan) -> list[Figure]:
    """Measures with and without jobs waiting on another route."""

    @asynccontextmanager
    async def open_side(plan: Plan, backlog: int) -> AsyncIterator[backlogged.Measure]:
        async with open_flow(plan, backlog) as flow:
            yield lambda: flow.through(plan.size.jobs)

    return await backlogged.with_and_without(plan, open_side, "submit to done", "jobs/s")


BENCHMARK = Benchmark(
    name="end-to-end",
    summary="a producer, a server and a worker in processes of their own, against the store alone",
    run=run,
    full=Size(jobs=20_000, rounds=7),
    short=Size(jobs=5_000, rounds=3),
    run_backlog=run_backlog,
)

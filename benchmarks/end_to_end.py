"""end-to-end: one producer, one server and one worker, each a process, against the store alone.

Size: `jobs` jobs in each round, of each way to measure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter

from jobwire_server.errors import JobwireError
from jobwire_server.model import JobState, NewJob
from jobwire_server.operations.routing import route_of
from jobwire_server.store.jobs import ClaimRequest, Success

from benchmarks import jobs
from benchmarks.figures import Figure, Goal, compared, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.parts import Part, module, open_part
from benchmarks.processes import until
from benchmarks.servers import Server, open_broker
from benchmarks.stores import Store, open_store

QUEUE = "default"
BATCH = 100
BATCHES_IN_FLIGHT = 8
CONCURRENCY, PREFETCH = 500, 500
"""Together the credits of its stream."""
STORE_CALLERS = 3
"""Enough that the store always has the next call at hand."""
LEASE_MS, RETENTION_MS = 600_000, 86_400_000
WARM_UP = 2_000
DONE_DEADLINE_S = 120.0
LOOK_S = 0.01
"""How often the queue is looked at for the end; what a round's time may be wrong by."""
GOAL = Goal("at least", 0.4)


@dataclass(slots=True)
class Flow:
    """A broker with a producer and a worker, each in a process of its own."""

    store: Store
    server: Server
    producer: Part
    worker: Part
    done: int = 0
    """Jobs that have been through."""
    layers: jobs.Layers = field(init=False)

    def __post_init__(self) -> None:
        self.layers = jobs.Layers(self.store)

    async def through(self, count: int) -> float:
        """Submits jobs while they are worked; returns the jobs a second from the first to the last.

        The last is the one whose result is the last to be stored.
        """
        began = perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.producer.ask(str(count)))
            await self._all_done(count)
            took = perf_counter() - began
        return count / took

    async def apart(self, count: int) -> tuple[float, float]:
        """Submits jobs to a paused queue, then lets it go; returns the jobs a second of each."""
        await self.layers.queues.set_paused(QUEUE, True)
        # The server learns of it with its next claim, which finds the queue paused and empty.
        answer = await self.producer.ask(str(count))
        await self.layers.queues.set_paused(QUEUE, False)
        began = perf_counter()
        await self._all_done(count)
        return count / answer["took_s"], count / (perf_counter() - began)

    async def _all_done(self, count: int) -> None:
        self.done += count

        async def all_done() -> bool:
            depth = (await self.layers.queues.read(QUEUE, detail=False)).depth
            return depth.get(JobState.SUCCEEDED, 0) >= self.done

        await until(all_done, f"{count:,} jobs are done", timeout_s=DONE_DEADLINE_S, pause_s=LOOK_S)

    async def check(self) -> None:
        """Checks that each job was submitted, started, handled and finished exactly once."""
        queue = await self.layers.queues.read(QUEUE, detail=False)
        check(queue.depth == {JobState.SUCCEEDED: self.done}, f"the queue holds {queue.depth}")
        totals = {name: queue.totals.get(name, 0) for name in ("submitted", "started", "succeeded")}
        check(set(totals.values()) == {self.done}, f"of {self.done:,} jobs: {totals}")
        said = await self.worker.ask("stats")
        counts = {name: said[name] for name in ("assigned", "handled", "succeeded")}
        check(set(counts.values()) == {self.done}, f"of {self.done:,} jobs the worker: {counts}")
        check(said["lost"] == said["released"] == said["failed"] == 0, f"the worker: {said}")


@asynccontextmanager
async def open_flow(plan: Plan) -> AsyncIterator[Flow]:
    """Starts a store, a server, a producer and a worker for as long as the context lasts."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        server = await stack.enter_async_context(open_broker(store, profile=plan.profile("server")))
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
        flow = Flow(store, server, producer, worker)
        await flow.through(WARM_UP)
        yield flow


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
            Success(job.job_id[-26:], "bench", job.fencing_token, b"done")
            for job in claimed.assignments
        ]
        answers = await self._layers.jobs.succeed(QUEUE, ends, RETENTION_MS)
        check(not any(isinstance(answer, JobwireError) for answer in answers), "a job was refused")
        self.done += len(answers)

    async def check(self, done: int) -> None:
        """Checks that so many jobs have been through."""
        check(self.done == done, f"{self.done:,} of {done:,} jobs")
        depth = (await self._layers.queues.read(QUEUE, detail=False)).depth
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
        await flow.check()
        await alone.check(WARM_UP + rounds * count)
    against = "the store alone"
    return [
        compared("submit to done", rates, "jobs/s", against=against, base=bare, goal=GOAL),
        measured("  submit, nobody works", submitting, "jobs/s"),
        measured("  work, nobody submits", working, "jobs/s"),
        measured("server CPU a job", server_us, "us"),
        measured("store CPU a job", store_us, "us"),
    ]


BENCHMARK = Benchmark(
    name="end-to-end",
    summary="a producer, a server and a worker in processes of their own, against the store alone",
    run=run,
    full=Size(jobs=20_000, rounds=7),
    short=Size(jobs=5_000, rounds=3),
)

"""unary-feed: producers that submit one job a call, and a worker on a stream, against a bare echo;
and the same through the SDK's client, which decides itself how jobs travel.

Size: `jobs` jobs, and as many calls of the echo, in each round.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from jobwire.v1 import job_service_pb2

from benchmarks import backlogged, jobs
from benchmarks.done import Done
from benchmarks.end_to_end import CONCURRENCY, PREFETCH
from benchmarks.figures import Figure, Goal, compared, measured
from benchmarks.frame import Benchmark, Plan, Size
from benchmarks.parts import module, open_part
from benchmarks.servers import Server, open_broker, open_echo
from benchmarks.stores import open_store
from benchmarks.submit_one import open_producer, open_worked
from benchmarks.submit_unary import SUBMIT, Echo, answer_bytes, stubs

CALLS_IN_FLIGHT = 100
WARM_UP = 1_000
GOAL = Goal("at least", 0.5)


@dataclass(slots=True)
class Feed:
    """A broker with producers in this process and a worker in another."""

    server: Server
    done: Done
    submits: list[Any]
    requests: list[job_service_pb2.SubmitJobRequest]

    async def through(self, count: int) -> float:
        """Submits jobs while they are worked; returns the jobs a second, the last one stored."""
        began = perf_counter()

        async def submit(number: int) -> None:
            call = self.submits[number % len(self.submits)]
            await call(self.requests[number % len(self.requests)])

        await jobs.each(count, CALLS_IN_FLIGHT, submit)
        await self.done.all_of(count)
        return count / (perf_counter() - began)


@asynccontextmanager
async def open_feed(plan: Plan, backlog: int) -> AsyncIterator[Feed]:
    """Starts and warms up all that is needed; checks the jobs at the end."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        server = await stack.enter_async_context(open_broker(store, profile=plan.profile("server")))
        if backlog:
            await backlogged.fill(store, plan, backlog)
        working = module(
            "benchmarks.working",
            *(server.address, CONCURRENCY, PREFETCH),
            profile=plan.profile("worker"),
        )
        worker = await stack.enter_async_context(open_part(working))
        submits = await stubs(stack, server, SUBMIT)
        feed = Feed(
            server, Done(store, worker, backlog), submits, [jobs.request() for _ in range(64)]
        )
        await feed.through(min(WARM_UP, plan.size.jobs))
        yield feed
        await feed.done.check()


async def run(plan: Plan) -> list[Figure]:
    """Measures both servers by turns."""
    count = plan.size.jobs
    rates: list[float] = []
    echoes: list[float] = []
    server_us: list[float] = []
    sdk_rates: list[float] = []
    async with AsyncExitStack() as stack:
        worked, sdk_done = await stack.enter_async_context(open_worked(plan))
        sdk = (await open_producer(stack, "sdk", worked)).producer

        async def through_sdk(count: int) -> float:
            began = perf_counter()
            await sdk.ask(f"submit {count} {CALLS_IN_FLIGHT}")
            await sdk_done.all_of(count)
            return count / (perf_counter() - began)

        await through_sdk(min(WARM_UP, count))
        feed = await stack.enter_async_context(open_feed(plan, 0))
        size = answer_bytes()
        bare = await stack.enter_async_context(open_echo(size))
        echo = Echo(await stubs(stack, bare), size)
        await echo.rate(min(WARM_UP, count), CALLS_IN_FLIGHT)
        for number in range(plan.size.rounds):
            plan.say(f"round {number + 1} of {plan.size.rounds}")
            echoes.append(await echo.rate(count, CALLS_IN_FLIGHT))
            cpu = feed.server.cpu_s()
            rates.append(await feed.through(count))
            server_us.append((feed.server.cpu_s() - cpu) / count * 1e6)
            sdk_rates.append(await through_sdk(count))
    return [
        compared(
            "SubmitJob to done on a stream",
            rates,
            "jobs/s",
            against="a bare echo",
            base=echoes,
            goal=GOAL,
        ),
        measured("server CPU a job", server_us, "us"),
        compared(
            "the SDK's submit to done",
            sdk_rates,
            "jobs/s",
            against="a bare echo",
            base=echoes,
        ),
    ]


async def run_backlog(plan: Plan) -> list[Figure]:
    """Measures with and without jobs waiting on another route."""

    @asynccontextmanager
    async def open_side(plan: Plan, backlog: int) -> AsyncIterator[backlogged.Measure]:
        async with open_feed(plan, backlog) as feed:
            yield lambda: feed.through(plan.size.jobs)

    return await backlogged.with_and_without(
        plan, open_side, "SubmitJob to done on a stream", "jobs/s"
    )


BENCHMARK = Benchmark(
    name="unary-feed",
    summary=f"{CALLS_IN_FLIGHT} SubmitJob calls in flight feed a worker's stream, against an echo",
    run=run,
    full=Size(jobs=6_000, rounds=9),
    short=Size(jobs=3_000, rounds=3),
    run_backlog=run_backlog,
)

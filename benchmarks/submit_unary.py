"""submit-unary: SubmitJob, one job a call, against a bare echo.

Size: `jobs` calls to each server in each round.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from jobwire.v1 import job_pb2, job_service_pb2
from jobwire_server.domain.ids import ULID

from benchmarks import backlogged, jobs
from benchmarks.echo import METHOD
from benchmarks.figures import Figure, Goal, compared, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.servers import Server, open_broker, open_echo
from benchmarks.stores import Store, open_store

CALLS_IN_FLIGHT = 200
CONNECTIONS = 2
WARM_UP = 2_000
SUBMIT = "/jobwire.v1.JobService/SubmitJob"
GOAL = Goal("at least", 0.75)


@dataclass(slots=True)
class Side:
    """One server with its client and what was measured of it."""

    server: Server
    call: Callable[[int], Awaitable[None]]
    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    async def measure(self, calls: int) -> None:
        """Makes the calls and notes their rate and what they cost the server."""
        cpu, began = self.server.cpu_s(), perf_counter()
        await jobs.each(calls, CALLS_IN_FLIGHT, self.call)
        self.rates.append(calls / (perf_counter() - began))
        self.cpu_us.append((self.server.cpu_s() - cpu) / calls * 1e6)


def answer_bytes() -> int:
    """Returns the size of the answer to SubmitJob, for the echo to answer with as much."""
    return job_service_pb2.SubmitJobResponse(
        job_id=f"default-{'0' * 26}", state=job_pb2.JOB_STATE_PENDING
    ).ByteSize()


async def run(plan: Plan) -> list[Figure]:
    """Measures both servers by turns."""
    calls, rounds = plan.size.jobs, plan.size.rounds
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        broker = await stack.enter_async_context(open_broker(store))
        accepted: list[str] = []
        submits = await stubs(stack, broker, SUBMIT)
        requests = [jobs.request() for _ in range(64)]

        async def submit(number: int) -> None:
            answer = await submits[number % CONNECTIONS](requests[number % 64])
            accepted.append(answer.job_id)

        jobwire = Side(broker, submit)
        await jobs.each(min(WARM_UP, calls), CALLS_IN_FLIGHT, submit)
        warm = len(accepted)

        size = answer_bytes()
        bare = await stack.enter_async_context(open_echo(size))
        echo = Echo(await stubs(stack, bare), size)

        yardstick = Side(bare, echo.call)
        await jobs.each(min(WARM_UP, calls), CALLS_IN_FLIGHT, echo.call)

        store_us: list[float] = []
        for number in range(rounds):
            plan.say(f"round {number + 1} of {rounds}")
            await yardstick.measure(calls)
            before = await store.cpu_us()
            await jobwire.measure(calls)
            store_us.append((await store.cpu_us() - before) / calls)
        await _check_stored(store, accepted, warm + rounds * calls)
    return [
        compared(
            "SubmitJob",
            jobwire.rates,
            "calls/s",
            against="a bare echo",
            base=yardstick.rates,
            goal=GOAL,
        ),
        compared(
            "server CPU a call",
            jobwire.cpu_us,
            "us",
            against="the echo's",
            base=yardstick.cpu_us,
        ),
        measured("store CPU a call", store_us, "us"),
    ]


class Echo:
    """Calls of the bare echo.

    Args:
        stubs: Of its method, one a connection.
        size: Of its answers, in bytes.
    """

    def __init__(self, stubs: list[Any], size: int) -> None:
        self._stubs = stubs
        self._size = size
        self._requests = [jobs.request() for _ in range(64)]

    async def call(self, number: int) -> None:
        """Makes one call."""
        answer = await self._stubs[number % len(self._stubs)](self._requests[number % 64])
        check(answer.ByteSize() == self._size, "the echo's answer has another size")

    async def rate(self, calls: int, width: int) -> float:
        """Makes so many calls, so many at a time, and returns the calls a second."""
        began = perf_counter()
        await jobs.each(calls, width, self.call)
        return calls / (perf_counter() - began)


async def stubs(stack: AsyncExitStack, server: Server, method: str = METHOD) -> list[Any]:
    """Returns the method on each of the connections, with the same client code for both servers."""
    found = []
    for _ in range(CONNECTIONS):
        channel = await stack.enter_async_context(server.channel())
        found.append(
            channel.unary_unary(
                method,
                request_serializer=job_service_pb2.SubmitJobRequest.SerializeToString,
                response_deserializer=job_service_pb2.SubmitJobResponse.FromString,
            )
        )
    return found


async def _check_stored(store: Store, accepted: list[str], expected: int, backlog: int = 0) -> None:
    check(len(set(accepted)) == expected, "a call was answered with the id of another")
    layers = jobs.Layers(store)
    queue = await layers.queues.read("default", detail=False)
    depth = {state.name: count for state, count in queue.counts.items()}
    check(
        depth == {"PENDING": backlog + expected},
        f"{expected} jobs were accepted, {depth} are there",
    )
    for at in range(0, expected, 500):
        found = await layers.jobs.read(
            "default", [job_id[ULID] for job_id in accepted[at : at + 500]], full=False
        )
        check(None not in found, "an accepted job is not in the store")


async def run_backlog(plan: Plan) -> list[Figure]:
    """Measures with jobs waiting on the same route and on another one, each against none."""
    figures: list[Figure] = []
    for name, operation in (("same", jobs.OPERATION), ("other", jobs.OTHER_OPERATION)):

        @asynccontextmanager
        async def open_side(
            plan: Plan, backlog: int, operation: str = operation
        ) -> AsyncIterator[backlogged.Measure]:
            async with AsyncExitStack() as stack:
                store = await stack.enter_async_context(open_store(plan.engine))
                broker = await stack.enter_async_context(open_broker(store))
                if backlog:
                    await backlogged.fill(store, plan, backlog, operation)
                submits = await stubs(stack, broker, SUBMIT)
                requests = [jobs.request() for _ in range(64)]
                accepted: list[str] = []

                async def submit(number: int) -> None:
                    answer = await submits[number % CONNECTIONS](requests[number % 64])
                    accepted.append(answer.job_id)

                side = Side(broker, submit)
                calls = plan.size.jobs
                await jobs.each(min(WARM_UP, calls), CALLS_IN_FLIGHT, submit)

                async def measure() -> float:
                    await side.measure(calls)
                    return side.rates[-1]

                yield measure
                await _check_stored(
                    store, accepted, min(WARM_UP, calls) + len(side.rates) * calls, backlog
                )

        figures += await backlogged.with_and_without(
            plan, open_side, f"SubmitJob, {name} route", "calls/s"
        )
    return figures


BENCHMARK = Benchmark(
    name="submit-unary",
    summary=f"SubmitJob with {CALLS_IN_FLIGHT} calls in flight against a bare gRPC echo",
    run=run,
    full=Size(jobs=6_000, rounds=21),
    short=Size(jobs=5_000, rounds=5),
    run_backlog=run_backlog,
)

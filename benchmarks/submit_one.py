"""submit-one: the SDK's `submit`, one at a time, against a bare unary round trip.

Size: `jobs` jobs in each round, of each way to submit, and as many round trips.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from jobwire_server.domain.model import JobState

from benchmarks import jobs
from benchmarks.done import QUEUE, Done
from benchmarks.end_to_end import CONCURRENCY, PREFETCH
from benchmarks.figures import Figure, Goal, compared, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.parts import Part, module, open_part
from benchmarks.servers import Server, open_broker, open_echo
from benchmarks.stores import Store, open_store
from benchmarks.submit_unary import answer_bytes

WARM_UP = 200
TIME_GOAL = Goal("at most", 1.0)
BUSY_GOAL = Goal("at least", 2_500)
KINDS = {"async": ("sdk", "bare"), "sync": ("sdk-sync", "bare-sync")}
"""Programs of `benchmarks.singly`: the SDK's client, and what it is compared with."""


@dataclass(slots=True)
class Series:
    """What one producer answered in each round."""

    producer: Part
    answers: list[Any] = field(default_factory=list)

    async def measure(self, line: str) -> None:
        """Has it do something and keeps its answer."""
        self.answers.append(await self.producer.ask(line))

    def all(self, name: str) -> list[float]:
        """Returns one number of each round's answer."""
        return [answer[name] for answer in self.answers]


async def open_producer(stack: AsyncExitStack, kind: str, server: Server) -> Series:
    """Starts a program of `benchmarks.singly`."""
    program = module("benchmarks.singly", kind, server.address)
    return Series(await stack.enter_async_context(open_part(program)))


@asynccontextmanager
async def open_worked(plan: Plan, kind: str = "async") -> AsyncIterator[tuple[Server, Done]]:
    """Runs a store, a server and the SDK's worker; checks the jobs at the end.

    Args:
        plan: Says which store.
        kind: Of the worker's handler; see `benchmarks.working`.
    """
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        server = await stack.enter_async_context(open_broker(store, profile=plan.profile("server")))
        program = module(
            "benchmarks.working",
            *(server.address, CONCURRENCY, PREFETCH, kind),
            profile=plan.profile("worker"),
        )
        done = Done(store, await stack.enter_async_context(open_part(program)))
        yield server, done
        await done.check()


async def run(plan: Plan) -> list[Figure]:
    """Measures all by turns, each producer in a process of its own."""
    count, warm_up = plan.size.jobs, min(WARM_UP, plan.size.jobs)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        idle = await stack.enter_async_context(open_broker(store))
        busy, done = await stack.enter_async_context(open_worked(plan))
        echo = await stack.enter_async_context(open_echo(answer_bytes()))
        bare: dict[str, Series] = {}
        alone: dict[str, Series] = {}
        worked: dict[str, Series] = {}
        for kind, (sdk, stub) in KINDS.items():
            bare[kind] = await open_producer(stack, stub, echo)
            alone[kind] = await open_producer(stack, sdk, idle)
            worked[kind] = await open_producer(stack, sdk, busy)
            for series in (bare[kind], alone[kind], worked[kind]):
                await series.producer.ask(f"submit {warm_up}")
            await done.all_of(warm_up)
        for number in range(plan.size.rounds):
            plan.say(f"round {number + 1} of {plan.size.rounds}")
            for kind in KINDS:
                await bare[kind].measure(f"submit {count}")
                await alone[kind].measure(f"submit {count}")
                await worked[kind].measure(f"submit {count}")
                await done.all_of(count)
        await check_waiting(store, len(KINDS) * (warm_up + plan.size.rounds * count))
    figures: list[Figure] = []
    for kind in KINDS:
        figures += _figures(kind, bare[kind], alone[kind], worked[kind])
    return figures


def _figures(kind: str, bare: Series, alone: Series, worked: Series) -> list[Figure]:
    against = f"a bare {kind} round trip"

    def rate(name: str, series: Series) -> Figure:
        base = bare.all("rate")
        return compared(name, series.all("rate"), "jobs/s", against=against, base=base)

    def p50(name: str, series: Series, goal: Goal | None) -> Figure:
        base, values = bare.all("p50_us"), series.all("p50_us")
        return compared(name, values, "us", against=against, base=base, goal=goal)

    busy = measured(f"{kind} submit, a worker runs", worked.all("rate"), "jobs/s")
    return [
        p50(f"{kind} submit, p50", alone, TIME_GOAL),
        rate(f"{kind} submit, rate", alone),
        busy.aiming_at(BUSY_GOAL) if kind == "async" else busy,
        rate(f"{kind} submit, worker, rate", worked),
        p50(f"{kind} submit, worker, p50", worked, None),
    ]


async def check_waiting(store: Store, count: int) -> None:
    """Checks that so many jobs wait in the queue, and no others are in it."""
    queue = await jobs.Layers(store).queues.read(QUEUE, detail=False)
    check(
        dict(queue.counts) == {JobState.PENDING: count},
        f"of {count:,} jobs that nobody works the queue has {queue.counts}",
    )


BENCHMARK = Benchmark(
    name="submit-one",
    summary="the SDK's submit, one job at a time, against a bare unary round trip",
    run=run,
    full=Size(jobs=1_000, rounds=9),
    short=Size(jobs=300, rounds=3),
)

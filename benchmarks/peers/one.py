"""peers-one: other job systems with one job at a time, next to Jobwire's SDK.

Size: `jobs` jobs in each round, of each way to measure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from benchmarks.done import Done
from benchmarks.figures import Figure, Goal, compared, quantile
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.installing import CannotInstall, install
from benchmarks.parts import Part, open_part
from benchmarks.peers.systems import SYSTEMS, System
from benchmarks.processes import until
from benchmarks.servers import open_broker
from benchmarks.stores import Store, open_store
from benchmarks.submit_one import check_waiting, open_producer, open_worked

WHATS = ("alone", "worked", "call", "calls", "paced")
RATE = 100
WIDTH = 100
WARM_UP = 100
DONE_DEADLINE_S = 120.0
LOOK_S = 0.01
ONE_AT_A_TIME = tuple(system for system in SYSTEMS if system.waiting is not None)
STRONGEST = "bullmq"
"""The one that the goals are set against."""
GOALS = {"call, p50": Goal("at most", 1.0), f"{WIDTH} calls in flight": Goal("at least", 2.0)}


class Side:
    """One system: its producers, each a process, and what they answered in each round.

    Args:
        parts: The producers: while nobody works; while a worker works; one that awaits results,
            which must not have to hear of the jobs that others submit; and one whose jobs answer
            when they started.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._alone, self._worked, self._awaiting, self._stamped = parts
        self.answers: dict[str, list[Any]] = {}

    async def measure(self, what: str, count: int) -> None:
        """Has it do something and keeps its answer."""
        answer = await self.ask(what, count)
        self.answers.setdefault(what, []).append(answer)

    async def ask(self, what: str, count: int) -> Any:
        """Has it do something."""
        if what == "alone":
            return await self._alone.ask(f"submit {count}")
        if what == "worked":
            return await self._worked.ask(f"submit {count}")
        if what == "paced":
            return await self._stamped.ask(f"paced {count} {RATE}")
        return await self._awaiting.ask(f"call {count} {1 if what == 'call' else WIDTH}")

    def all(self, what: str, name: str) -> list[float]:
        """Returns a number of each round's answer."""
        return [answer[name] for answer in self.answers[what]]

    def latencies_us(self, fraction: float) -> list[float]:
        """Returns the quantile of each round's times to the start of the handler."""
        return [quantile(answer["took_s"], fraction) * 1e6 for answer in self.answers["paced"]]


class Ours(Side):
    """Jobwire, with the counts of its jobs."""

    def __init__(self, parts: Sequence[Part], done: Done, stamped_done: Done) -> None:
        super().__init__(parts)
        self._done = done
        self._stamped_done = stamped_done
        self.waiting = 0

    async def ask(self, what: str, count: int) -> Any:
        """Has it do something, and waits until its jobs are done."""
        answer = await super().ask(what, count)
        if what == "alone":
            self.waiting += count
        else:
            await (self._stamped_done if what == "paced" else self._done).all_of(count)
        return answer


class Theirs(Side):
    """Another system, with the counts of its jobs."""

    def __init__(self, parts: Sequence[Part], system: System, store: Store) -> None:
        super().__init__([*parts, parts[-1]])
        self._system = system
        self._store = store
        self.waiting = self.done = 0

    async def ask(self, what: str, count: int) -> Any:
        """Has it do something, and waits until its jobs are done."""
        answer = await super().ask(what, count)
        if what == "alone":
            self.waiting += count
            return answer
        self.done += count

        async def all_done() -> bool:
            return await self._system.left(self._store, self.done) <= 0

        name = f"{self._system.name}: {self.done:,} jobs are done"
        await until(all_done, name, timeout_s=DONE_DEADLINE_S, pause_s=LOOK_S)
        return answer


async def _warm_up(side: Side, count: int) -> None:
    for what in WHATS:
        await side.ask(what, count)


@asynccontextmanager
async def _open_ours(plan: Plan) -> AsyncIterator[Ours]:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        idle = await stack.enter_async_context(open_broker(store))
        busy, done = await stack.enter_async_context(open_worked(plan))
        stamping, stamped_done = await stack.enter_async_context(open_worked(plan, "stamped"))
        servers = (idle, busy, busy, stamping)
        parts = [(await open_producer(stack, "sdk", server)).producer for server in servers]
        ours = Ours(parts, done, stamped_done)
        await _warm_up(ours, min(WARM_UP, plan.size.jobs))
        yield ours
        await check_waiting(store, ours.waiting)


@asynccontextmanager
async def _open_theirs(plan: Plan, system: System) -> AsyncIterator[Theirs]:
    folder, make, command = system.install
    if not (folder / ".ready").exists():
        plan.say(f"installing {system.name} {system.version} into {folder}")
    await install(folder, make)
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(plan.engine)) for _ in range(2)]
        idle, busy = (store.url.removeprefix("unix://").partition("?")[0] for store in stores)
        await stack.enter_async_context(open_part((*command, "work-one", busy), cwd=folder))
        parts = [
            await stack.enter_async_context(open_part((*command, "produce-one", path), cwd=folder))
            for path in (idle, busy, busy)
        ]
        theirs = Theirs(parts, system, stores[1])
        await _warm_up(theirs, min(WARM_UP, plan.size.jobs))
        yield theirs
        found = await system.results(stores[1])
        check(found == theirs.done, f"{system.name}: {found:,} of {theirs.done:,} results")
        assert system.waiting is not None
        waiting = int(await stores[0].command("LLEN", system.waiting))
        check(waiting == theirs.waiting, f"{system.name}: {waiting:,} of {theirs.waiting:,} wait")


async def run(plan: Plan) -> list[Figure]:
    """Measures one system after the other, each round next to one of Jobwire."""
    figures: list[Figure] = []
    async with _open_ours(plan) as ours:
        for system in ONE_AT_A_TIME:
            ours.answers = {}
            try:
                async with _open_theirs(plan, system) as theirs:
                    for number in range(plan.size.rounds):
                        plan.say(f"{system.name}: round {number + 1} of {plan.size.rounds}")
                        for what in WHATS:
                            await theirs.measure(what, plan.size.jobs)
                            await ours.measure(what, plan.size.jobs)
            except CannotInstall as error:
                plan.say(f"{system.name} is left out: {error}")
                continue
            figures += _figures(system, ours, theirs)
    check(bool(figures), "no other system could be installed")
    return figures


def _figures(system: System, ours: Side, theirs: Side) -> list[Figure]:
    def figure(name: str, unit: str, values: list[float], base: list[float]) -> Figure:
        goal = GOALS.get(name) if system.name == STRONGEST else None
        against = f"{system.name} {system.version}"
        return compared(name, values, unit, against=against, base=base, goal=goal)

    def both(name: str, what: str, number: str) -> Figure:
        unit = "us" if number.endswith("_us") else "jobs/s"
        return figure(name, unit, ours.all(what, number), theirs.all(what, number))

    return [
        both("submit one, nobody works", "alone", "rate"),
        both("submit one, a worker runs", "worked", "rate"),
        both("call, p50", "call", "p50_us"),
        both(f"{WIDTH} calls in flight", "calls", "rate"),
        *(
            figure(
                f"submit to handler, p{fraction * 100:g}",
                "us",
                ours.latencies_us(fraction),
                theirs.latencies_us(fraction),
            )
            for fraction in (0.5, 0.99)
        ),
    ]


BENCHMARK = Benchmark(
    name="peers-one",
    summary="BullMQ, Celery and Huey with one job at a time, against the SDK",
    run=run,
    full=Size(jobs=500, rounds=3),
    short=Size(jobs=100, rounds=1),
    in_short=False,
    # What the guides of the others name.
    engine="redis",
)

"""peers: other job systems with the same work on the same store, next to Jobwire end to end.

Size: `jobs` jobs through each system in each round.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

from benchmarks.end_to_end import open_flow
from benchmarks.figures import Figure, Goal, compared
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.installing import CannotInstall, install
from benchmarks.parts import Part, open_part
from benchmarks.peers.systems import SYSTEMS, System
from benchmarks.processes import until
from benchmarks.stores import Store, open_store

WARM_UP = 500
DONE_DEADLINE_S = 300.0
LOOK_S = 0.01
GOAL = Goal("at least", 2.0)


@dataclass(slots=True)
class Peer:
    """A system that runs: a producer and a worker, each a process, on a store of their own."""

    system: System
    store: Store
    producer: Part
    done: int = 0

    async def through(self, count: int) -> float:
        """Submits jobs while they are worked; returns the jobs a second, the last one done."""
        began = perf_counter()
        self.done += count
        # What some systems tell is right only once all were submitted.
        await self.producer.ask(str(count))

        async def all_done() -> bool:
            return await self.system.left(self.store, self.done) <= 0

        what = f"{self.system.name}: {self.done:,} jobs are done"
        await until(all_done, what, timeout_s=DONE_DEADLINE_S, pause_s=LOOK_S)
        return count / (perf_counter() - began)

    async def check(self) -> None:
        """Checks that each job has its result."""
        found = await self.system.results(self.store)
        check(found == self.done, f"{self.system.name}: {found:,} of {self.done:,} results")


@asynccontextmanager
async def open_peer(plan: Plan, system: System) -> AsyncIterator[Peer]:
    """Starts and warms up a system; checks its jobs at the end.

    Raises:
        CannotInstall: It is not there and can't be had.
    """
    folder, make, command = system.install
    if not (folder / ".ready").exists():
        plan.say(f"installing {system.name} {system.version} into {folder}")
    await install(folder, make)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        path = store.url.removeprefix("unix://").partition("?")[0]
        await stack.enter_async_context(open_part((*command, "work", path), cwd=folder))
        producer = await stack.enter_async_context(
            open_part((*command, "produce", path), cwd=folder)
        )
        peer = Peer(system, store, producer)
        await peer.through(WARM_UP)
        yield peer
        await peer.check()


async def run(plan: Plan) -> list[Figure]:
    """Measures one system after the other, each round next to one of Jobwire."""
    figures: list[Figure] = []
    async with open_flow(plan) as flow:
        for system in SYSTEMS:
            ours: list[float] = []
            theirs: list[float] = []
            try:
                async with open_peer(plan, system) as peer:
                    for number in range(plan.size.rounds):
                        plan.say(f"{system.name}: round {number + 1} of {plan.size.rounds}")
                        ours.append(await flow.through(plan.size.jobs))
                        theirs.append(await peer.through(plan.size.jobs))
            except CannotInstall as error:
                plan.say(f"{system.name} is left out: {error}")
                continue
            figures.append(
                compared(
                    "jobwire, submit to done",
                    ours,
                    "jobs/s",
                    against=f"{system.name} {system.version}",
                    base=theirs,
                    note=f"when a worker is killed: {system.killed}",
                )
            )
    check(bool(figures), "no other system could be installed")
    figures = _with_goal(figures)
    for row in _table(figures):
        plan.say(row)
    return figures


def _with_goal(figures: list[Figure]) -> list[Figure]:
    """Sets the goal for the fastest, which comes first from here on."""
    ordered = sorted(figures, key=lambda figure: figure.ratio.of.median if figure.ratio else 0.0)
    return [ordered[0].aiming_at(GOAL), *ordered[1:]]


def _table(figures: list[Figure]) -> list[str]:
    """Returns a line for each system, and one for the headings."""
    form = "{:<18} {:>8} {:>10}  {}"
    rows = [form.format("system", "jobs/s", "jobwire/it", "what its documentation says")]
    for figure in figures:
        if figure.ratio is not None:
            of = figure.ratio
            numbers = f"{of.base:,.0f}", f"{of.of.median:.1f}"
            rows.append(form.format(of.against, *numbers, figure.note))
    return rows


async def main() -> None:
    """Installs all of them: `python -m benchmarks.peers.benchmark`."""
    for system in SYSTEMS:
        folder, make, _ = system.install
        await install(folder, make)
        print(f"{system.name} {system.version}: {folder}")


BENCHMARK = Benchmark(
    name="peers",
    summary="Celery, Huey, Dramatiq, BullMQ and asynq on the same store, against end-to-end",
    run=run,
    full=Size(jobs=20_000, rounds=3),
    short=Size(jobs=2_000, rounds=1),
    in_short=False,
    # What the guides of the others name.
    engine="redis",
)


if __name__ == "__main__":
    asyncio.run(main())

"""The same with a backlog and without: each on a store and a server of its own, by turns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from benchmarks import jobs
from benchmarks.figures import Figure, Goal, compared
from benchmarks.frame import Plan
from benchmarks.stores import Store

Measure = Callable[[], Awaitable[float]]
OpenSide = Callable[[Plan, int], AbstractAsyncContextManager[Measure]]

RATE_GOAL = Goal("at least", 0.75)
TIME_GOAL = Goal("at most", round(1 / 0.75, 2))


async def fill(store: Store, plan: Plan, count: int, operation: str = jobs.OTHER_OPERATION) -> None:
    """Fills the default queue with jobs that wait, on another route unless told otherwise."""
    await jobs.fill(jobs.Layers(store), "default", count, jobs.JobMaker(operation), plan.say)


async def with_and_without(
    plan: Plan, open_side: OpenSide, name: str, unit: str, goal: Goal = RATE_GOAL
) -> list[Figure]:
    """Measures both by turns.

    Args:
        plan: Says how many jobs wait.
        open_side: Starts what is measured with so many jobs waiting, warms it up, gives what
            measures one round of it, and checks the jobs at the end.
        name: What is measured.
        unit: Of what each round returns.
        goal: For the ratio of with to without.
    """
    long: list[float] = []
    short: list[float] = []
    async with AsyncExitStack() as stack:
        without = await stack.enter_async_context(open_side(plan, 0))
        having = await stack.enter_async_context(open_side(plan, plan.backlog))
        for number in range(plan.size.rounds):
            plan.say(f"round {number + 1} of {plan.size.rounds}")
            # There and back, so that neither side always comes first.
            sides = [(without, short), (having, long)]
            for measure, values in sides if number % 2 else reversed(sides):
                values.append(await measure())
    return [
        compared(
            f"{name}, {plan.backlog:,} waiting",
            long,
            unit,
            against="the same without",
            base=short,
            goal=goal,
        )
    ]

"""call: the SDK submits a job and awaits its result, against bare unary round trips.

Size: `jobs` jobs in each round one at a time, twice as many with a hundred in flight, and as many
round trips.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from benchmarks.figures import Figure, Goal, compared
from benchmarks.frame import Benchmark, Plan, Size
from benchmarks.servers import open_echo
from benchmarks.submit_one import KINDS, Series, open_producer, open_worked
from benchmarks.submit_unary import answer_bytes

WIDTH = 100
MORE = 2
"""So many times the jobs while many are in flight, which takes less time a job."""
WARM_UP = 200
TIME_GOAL = Goal("at most", 2.5)
RATE_GOAL = Goal("at least", 0.6)


async def run(plan: Plan) -> list[Figure]:
    """Measures all by turns, each producer in a process of its own."""
    count, many = plan.size.jobs, plan.size.jobs * MORE
    one: dict[str, Series] = {}
    bare_one: dict[str, Series] = {}
    async with AsyncExitStack() as stack:
        server, done = await stack.enter_async_context(open_worked(plan))
        echo = await stack.enter_async_context(open_echo(answer_bytes()))
        for kind, (sdk, stub) in KINDS.items():
            one[kind] = await open_producer(stack, sdk, server)
            bare_one[kind] = await open_producer(stack, stub, echo)
            for series in (one[kind], bare_one[kind]):
                await series.producer.ask(f"call {min(WARM_UP, count)} 1")
            await done.all_of(min(WARM_UP, count))
        wide, bare_wide = Series(one["async"].producer), Series(bare_one["async"].producer)
        for series in (wide, bare_wide):
            await series.producer.ask(f"call {min(WARM_UP, count)} {WIDTH}")
        await done.all_of(min(WARM_UP, count))
        for number in range(plan.size.rounds):
            plan.say(f"round {number + 1} of {plan.size.rounds}")
            for kind in KINDS:
                await bare_one[kind].measure(f"call {count} 1")
                await one[kind].measure(f"call {count} 1")
                await done.all_of(count)
            await bare_wide.measure(f"call {many} {WIDTH}")
            await wide.measure(f"call {many} {WIDTH}")
            await done.all_of(many)
    figures: list[Figure] = []
    for kind in KINDS:
        against = f"a bare {kind} round trip"
        figures += [
            _compared(f"{kind} call, p50", "p50_us", one[kind], bare_one[kind], against, TIME_GOAL),
            _compared(f"{kind} call, p99", "p99_us", one[kind], bare_one[kind], against),
            _compared(f"{kind} call, rate", "rate", one[kind], bare_one[kind], against),
        ]
    against = f"round trips, {WIDTH} in flight"
    return [
        *figures,
        _compared(f"{WIDTH} in flight, rate", "rate", wide, bare_wide, against, RATE_GOAL),
        _compared(f"{WIDTH} in flight, p50", "p50_us", wide, bare_wide, against),
    ]


def _compared(
    name: str, what: str, ours: Series, bare: Series, against: str, goal: Goal | None = None
) -> Figure:
    unit = "calls/s" if what == "rate" else "us"
    values, base = ours.all(what), bare.all(what)
    return compared(name, values, unit, against=against, base=base, goal=goal)


BENCHMARK = Benchmark(
    name="call",
    summary=f"submit and await the result, 1 and {WIDTH} in flight, against bare round trips",
    run=run,
    full=Size(jobs=500, rounds=9),
    short=Size(jobs=150, rounds=3),
)

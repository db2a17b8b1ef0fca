"""overload: twice as many SubmitJob calls as the server can take, each with a deadline.

Size: `jobs` calls at the best rate, and as many at twice that rate, in each round.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from jobwire_server.model import JobState

from benchmarks import jobs
from benchmarks.figures import Figure, Goal, compared, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.parts import module, open_part
from benchmarks.servers import Server, open_broker
from benchmarks.stores import open_store

CHANNELS = 20
CALLS_IN_FLIGHT = 200
TIMES = 2.0
DEADLINE_S = 2.0
WARM_UP = 1_000
WATCH_S = 0.1
RATE_GOAL = Goal("at least", 0.9)
ANSWERED_GOAL = Goal("at least", 100)
GROWTH_GOAL = Goal("at most", 128)


async def run(plan: Plan) -> list[Figure]:
    """Measures the best rate and the rate under twice that load by turns."""
    calls = plan.size.jobs
    best: list[float] = []
    rates: list[float] = []
    offered: list[float] = []
    answered: list[float] = []
    longest: list[float] = []
    accepted = sent = 0
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        server = await stack.enter_async_context(open_broker(store, profile=plan.profile("server")))
        crowd = await stack.enter_async_context(
            open_part(module("benchmarks.overloading", server.address, CHANNELS))
        )
        said = await crowd.ask(f"best {min(WARM_UP, calls)} {CALLS_IN_FLIGHT}")
        accepted, sent = said["accepted"], min(WARM_UP, calls)
        peak = Peak(server)
        watching = asyncio.create_task(peak.watch())
        try:
            for number in range(plan.size.rounds):
                plan.say(f"round {number + 1} of {plan.size.rounds}")
                said = await crowd.ask(f"best {calls} {CALLS_IN_FLIGHT}")
                check(said["accepted"] == calls, f"at the best rate: {said}")
                best.append(calls / said["took_s"])
                peak.begin()
                said = await crowd.ask(f"offer {calls} {TIMES * best[-1]} {DEADLINE_S}")
                check(said["other"] == 0, f"a call failed as a defect: {said}")
                plan.say(f"offered {calls}: {said}")
                rates.append(said["accepted"] / said["took_s"])
                offered.append(calls / said["offering_s"])
                answered.append(100 * (said["accepted"] + said["refused"]) / calls)
                longest.append(said["longest_s"])
                accepted += calls + said["accepted"]
                sent += 2 * calls
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        depth = (await jobs.Layers(store).queues.read("default", detail=False)).depth
        # What was not answered in time may be in the store all the same.
        there = depth.get(JobState.PENDING, 0)
        check(
            accepted <= there <= sent, f"{accepted:,} of {sent:,} were accepted, {depth} are there"
        )
    return [
        compared(
            "accepted under twice the load",
            rates,
            "calls/s",
            against="the best rate",
            base=best,
            goal=RATE_GOAL,
        ),
        measured("  offered", offered, "calls/s"),
        measured("answered within the deadline", answered, "%", goal=ANSWERED_GOAL),
        measured("  the longest call, as its caller saw it", longest, "s"),
        measured("growth of the server", peak.growth_mib, "MiB", goal=GROWTH_GOAL),
    ]


class Peak:
    """The most memory that a server occupied, above what it had before."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = self._most = server.resident_bytes()
        self._rounds: list[tuple[int, int]] = []

    def begin(self) -> None:
        """Begins another round."""
        self._before = self._most = self._server.resident_bytes()
        self._rounds.append((self._before, self._most))

    async def watch(self) -> None:
        """Looks again and again, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            self._most = max(self._most, self._server.resident_bytes())
            if self._rounds:
                self._rounds[-1] = (self._before, self._most)

    @property
    def growth_mib(self) -> list[float]:
        """The growth of each round, in MiB."""
        return [(most - before) / (1 << 20) for before, most in self._rounds]


BENCHMARK = Benchmark(
    name="overload",
    summary=f"SubmitJob at {TIMES:g} times the best rate, with deadlines of {DEADLINE_S:g} s",
    run=run,
    full=Size(jobs=50_000, rounds=5),
    short=Size(jobs=15_000, rounds=2),
)

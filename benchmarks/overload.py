"""overload: twice as many submissions as the server can take, each call with a deadline.

Size: `jobs` SubmitJob calls at twice the best rate in each round; an eighth as many of SubmitJobs.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import Message

from jobwire.v1 import job_service_pb2
from jobwire_server.domain.model import JobState

from benchmarks import jobs
from benchmarks.figures import Figure, Goal, compared, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.installing import go_program, install
from benchmarks.parts import Part, open_part
from benchmarks.servers import Server, open_broker
from benchmarks.stores import Store, open_store

CONNECTIONS = 20
TIMES = 2.0
DEADLINE_S = 5.0
WATCH_S = 0.05
RATE_GOAL = Goal("at least", 0.9)
ANSWERED_GOAL = Goal("at least", 100)
GROWTH_GOAL = Goal("at most", 320)
CROWD = Path(__file__).parent / "crowd"


@dataclass(slots=True)
class Kind:
    """A way to submit, and what was measured of it."""

    name: str
    method: str
    request: Message
    jobs: int
    """Of one call."""
    in_flight: int
    """Calls, for the best rate."""
    share: int
    """One call for so many single ones, which take as long."""
    best: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    offered: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    told_when: list[float] = field(default_factory=list)
    longest: list[float] = field(default_factory=list)
    growth: list[float] = field(default_factory=list)

    async def measure(self, plan: Plan) -> None:
        """Measures one round, on a store and a server of its own."""
        calls = max(2, plan.size.jobs // self.share)
        async with _open(plan, self) as (store, server, crowd):
            warm = max(1, calls // 10)
            await crowd.ask(f"best {warm} {self.in_flight}")
            said = await crowd.ask(f"best {calls // 2} {self.in_flight}")
            check(said["accepted"] == calls // 2, f"at the best rate: {said}")
            best = said["accepted"] / said["took_s"]
            async with _growth(server) as grown:
                said = await crowd.ask(f"offer {calls} {TIMES * best} {DEADLINE_S}")
            plan.say(f"{self.name}, offered {calls}: {said}")
            check(said["other"] == 0, f"a call failed as a defect: {said}")
            check(said["refused_bare"] == 0, f"a refusal without a delay: {said}")
            accepted = said["accepted"]
            known = warm + calls // 2 + accepted
            await self._check(store, known, warm + calls // 2 + calls)
        self.best.append(best * self.jobs)
        self.rates.append(accepted * self.jobs / said["took_s"])
        self.offered.append(calls * self.jobs / said["offering_s"])
        self.answered.append(100 * (calls - said["late"]) / calls)
        self.told_when.append(100 * said["refused"] / max(1, calls - accepted))
        self.longest.append(max(said["longest_s"].values()))
        self.growth.append(max(grown) / (1 << 20))

    async def _check(self, store: Store, least: int, most: int) -> None:
        depth = (await jobs.Layers(store).queues.read("default", detail=False)).counts
        # What was not answered in time may be in the store all the same.
        there = depth.get(JobState.PENDING, 0)
        check(
            least * self.jobs <= there <= most * self.jobs and depth.keys() <= {JobState.PENDING},
            f"{least * self.jobs:,} to {most * self.jobs:,} jobs were accepted, {depth} are there",
        )

    def figures(self) -> list[Figure]:
        """Returns what was measured."""
        return [
            compared(
                f"{self.name}: accepted at {TIMES:g} times the best",
                self.rates,
                "jobs/s",
                against="the best rate",
                base=self.best,
                goal=RATE_GOAL,
            ),
            measured(f"  {self.name}: offered", self.offered, "jobs/s"),
            measured(
                f"  {self.name}: answered within the deadline",
                self.answered,
                "%",
                goal=ANSWERED_GOAL,
            ),
            measured(f"  {self.name}: of those refused, told when to retry", self.told_when, "%"),
            measured(f"  {self.name}: the longest call", self.longest, "s"),
            measured(f"  {self.name}: growth of the server", self.growth, "MiB", goal=GROWTH_GOAL),
        ]


@asynccontextmanager
async def _open(plan: Plan, kind: Kind) -> AsyncIterator[tuple[Store, Server, Part]]:
    _, _, command = go_program(CROWD)
    request = base64.b64encode(kind.request.SerializeToString()).decode()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        server = await stack.enter_async_context(open_broker(store, profile=plan.profile("server")))
        arguments = (server.address, str(CONNECTIONS), kind.method, request)
        crowd = await stack.enter_async_context(open_part((*command, *arguments)))
        yield store, server, crowd


@asynccontextmanager
async def _growth(server: Server) -> AsyncIterator[list[int]]:
    """Watches the memory that a server occupies above what it had before, in bytes."""
    before = server.resident_bytes()
    grown = [0]

    async def watch() -> None:
        while True:
            grown.append(server.resident_bytes() - before)
            await asyncio.sleep(WATCH_S)

    watching = asyncio.create_task(watch())
    try:
        yield grown
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _kinds() -> list[Kind]:
    batch = job_service_pb2.SubmitJobsRequest(requests=[jobs.request() for _ in range(100)])
    service = "/jobwire.v1.JobService"
    return [
        Kind("single calls", f"{service}/SubmitJob", jobs.request(), 1, 200, 1),
        Kind("batches of 100", f"{service}/SubmitJobs", batch, 100, 20, 8),
    ]


async def run(plan: Plan) -> list[Figure]:
    """Measures single calls and batches by turns.

    Raises:
        CannotInstall: There is no Go, which the crowd of producers is written in.
    """
    folder, make, _ = go_program(CROWD)
    await install(folder, make)
    kinds = _kinds()
    for number in range(plan.size.rounds):
        plan.say(f"round {number + 1} of {plan.size.rounds}")
        for kind in kinds:
            await kind.measure(plan)
    return [figure for kind in kinds for figure in kind.figures()]


BENCHMARK = Benchmark(
    name="overload",
    summary=f"submissions at {TIMES:g} times the best rate, with deadlines of {DEADLINE_S:g} s",
    run=run,
    full=Size(jobs=100_000, rounds=3),
    short=Size(jobs=20_000, rounds=1),
)

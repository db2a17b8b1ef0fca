"""backlog: what a claim costs with a long queue, against a short one.

Size: `jobs` jobs in the long queue. The two queues live in two stores of their own, so that the
short one is not slowed by the other's memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter

from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.ids import ULID
from jobwire_server.domain.model import Assignment, JobState
from jobwire_server.store.attempts import SuccessToWrite
from jobwire_server.store.claims import ClaimRequest

from benchmarks import jobs
from benchmarks.figures import Figure, Goal, compared
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.stores import Store, open_store

SHORT_BACKLOG = 1_000
# In each round the calls take half of the short queue at most, which is then filled up again.
CALLS = {1: 200, 100: 5}
GOAL = Goal("at most", 1.3)
QUEUE, WORKER, LEASE_MS, RETENTION_MS = "default", "worker", 600_000, 600_000


@dataclass(slots=True)
class Side:
    """A store with a backlog that is the same before each measurement."""

    store: Store
    backlog: int
    maker: jobs.JobMaker
    layers: jobs.Layers = field(init=False)
    seen: set[str] = field(default_factory=set)
    claimed: int = 0
    script_us: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in CALLS})
    wall_us: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in CALLS})

    def __post_init__(self) -> None:
        self.layers = jobs.Layers(self.store)

    async def measure(self, most: int) -> None:
        """Claims so many jobs at a time, then finishes them and restores the backlog."""
        request = ClaimRequest(WORKER, most, LEASE_MS, (route_of(jobs.OPERATION, {}).id,))
        taken: list[Assignment] = []
        calls = CALLS[most]
        before, began = await self.store.script_us(), perf_counter()
        for _ in range(calls):
            (answer,) = await self.layers.jobs.claim(QUEUE, [request], RETENTION_MS)
            taken += answer.assignments
        wall = perf_counter() - began
        self.script_us[most].append((await self.store.script_us() - before) / calls)
        self.wall_us[most].append(wall / calls * 1e6)
        check(len(taken) == calls * most, f"{calls} claims of {most} brought {len(taken)} jobs")
        await self._restore(taken)

    async def _restore(self, taken: list[Assignment]) -> None:
        ends = [SuccessToWrite(job.job_id[ULID], WORKER, job.fencing_token, b"") for job in taken]
        await self.layers.jobs.succeed(QUEUE, ends, RETENTION_MS)
        await self.layers.jobs.submit(QUEUE, self.maker.make(len(taken)))
        self.seen.update(job.job_id for job in taken)
        self.claimed += len(taken)

    async def check(self) -> None:
        """Checks that no job was lost or delivered twice."""
        check(len(self.seen) == self.claimed, "a job was delivered twice")
        depth = (await self.layers.queues.read(QUEUE, detail=False)).counts
        expected = {JobState.PENDING: self.backlog, JobState.SUCCEEDED: self.claimed}
        check(depth == expected, f"the queue holds {depth}, not {expected}")


async def run(plan: Plan) -> list[Figure]:
    """Measures both queues by turns."""
    async with open_store(plan.engine) as first, open_store(plan.engine) as second:
        maker = jobs.JobMaker()
        short, long = Side(first, SHORT_BACKLOG, maker), Side(second, plan.size.jobs, maker)
        for side in (short, long):
            await jobs.fill(side.layers, QUEUE, side.backlog, maker, plan.say)
            for most in CALLS:  # loads the scripts, and is not counted
                await side.measure(most)
                side.script_us[most].clear()
                side.wall_us[most].clear()
        for number in range(plan.size.rounds):
            if number % 10 == 0:
                plan.say(f"round {number + 1} of {plan.size.rounds}")
            for most in CALLS:
                # There and back, so that neither side always comes first.
                for side in (short, long) if number % 2 else (long, short):
                    await side.measure(most)
        for side in (short, long):
            await side.check()
    against = f"that at {SHORT_BACKLOG:,}"
    figures: list[Figure] = []
    for most in CALLS:
        name = f"claim of {most} at {plan.size.jobs:,}"
        figures += (
            compared(
                f"{name}, script",
                long.script_us[most],
                "us",
                against=against,
                base=short.script_us[most],
                goal=GOAL,
            ),
            compared(
                f"{name}, call",
                long.wall_us[most],
                "us",
                against=against,
                base=short.wall_us[most],
                goal=GOAL,
            ),
        )
    return figures


BENCHMARK = Benchmark(
    name="backlog",
    summary="a claim at a backlog of a million against one at a thousand",
    run=run,
    full=Size(jobs=1_000_000, rounds=100),
    short=Size(jobs=200_000, rounds=20),
)

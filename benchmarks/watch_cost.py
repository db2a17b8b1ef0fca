"""watch-cost: what telling of changes costs while nobody watches, and what an event log adds.

Size: `jobs` jobs from submission to stored result in each round, in batches of 100, at the store.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from hashlib import sha1
from time import perf_counter
from typing import Any

from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.ids import ULID, job_id_of
from jobwire_server.domain.model import JobState, NewJob
from jobwire_server.store.attempts import SuccessToWrite
from jobwire_server.store.claims import ClaimRequest
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.runner import Argument, ScriptRunner
from jobwire_server.store.scripts import Script, load

from benchmarks import jobs
from benchmarks.figures import Figure, Goal, compared, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.stores import Store, open_store

BATCH = 100
LOG_ENTRIES = 100_000
DAY_MS = 86_400_000
TELLING = "    redis.pcall('SPUBLISH', prefix .. 'events', ulids)\n"
"""The line by which a transition tells of the jobs that changed."""


@cache
def silent(name: str) -> Script:
    """Returns a script of the product without the line that tells of changes."""
    source = load(name).source.replace(TELLING, "")
    return replace(load(name), source=source, digest=sha1(source.encode()).hexdigest())


class SilentRunner(ScriptRunner):
    """Runs scripts that tell nobody of changes."""

    async def run(self, name: str, key: str, args: Any) -> Any:
        """Runs one script on one key prefix."""
        script = silent(name)
        given: list[Argument] = [self.clock_shift_ms, *args] if script.timed else [*args]
        return await self._repeat("script", key, lambda: self._once(script, key, given))


class Lives:
    """Takes jobs of a queue through their whole life.

    Args:
        store: Where.
        queue: The queue.
        runner: How scripts are run.
    """

    def __init__(self, store: Store, queue: str, runner: ScriptRunner) -> None:
        self._jobs = JobStore(runner, f"bench-{queue}")
        self._queues = QueueStore(runner)
        self._store = store
        self._queue = queue
        self.rates: list[float] = []
        """Jobs a second, round by round."""
        self.script_us: list[float] = []
        """The time of the store's scripts for a job, round by round."""
        self.done = 0

    async def measure(self, batches: list[list[NewJob]]) -> None:
        """Does one round."""
        routes = (route_of(jobs.OPERATION, {}).id,)
        wish = ClaimRequest("bench", BATCH, DAY_MS, routes)
        before, began = await self._store.script_us(), perf_counter()
        total = 0
        for batch in batches:
            await self._jobs.submit(self._queue, [self._own(job) for job in batch])
            (claimed,) = await self._jobs.claim(self._queue, [wish], DAY_MS)
            ends = [
                SuccessToWrite(job.job_id[ULID], "bench", job.fencing_token, b"result")
                for job in claimed.assignments
            ]
            await self._jobs.succeed(self._queue, ends, DAY_MS)
            total += len(ends)
        took = perf_counter() - began
        self.rates.append(total / took)
        self.script_us.append((await self._store.script_us() - before) / total)
        self.done += total

    def _own(self, job: NewJob) -> NewJob:
        return job._replace(queue=self._queue, job_id=job_id_of(self._queue, job.job_id[ULID]))

    async def check(self) -> None:
        """Checks that every job has succeeded."""
        depth = (await self._queues.read(self._queue, detail=False)).counts
        check(depth == {JobState.SUCCEEDED: self.done}, f"{self._queue} holds {depth}")


async def run(plan: Plan) -> list[Figure]:
    """Measures the three by turns on one store."""
    check(silent("submit") != load("submit"), "the scripts tell of changes in another way now")
    count, rounds = max(BATCH, plan.size.jobs), plan.size.rounds
    async with open_store(plan.engine) as store:
        connection = store.connection
        telling = Lives(store, "telling", ScriptRunner(connection))
        mute = Lives(store, "mute", SilentRunner(connection))
        logging = Lives(store, "logging", ScriptRunner(connection))
        await QueueStore(ScriptRunner(connection)).configure(
            "logging", {"event_log_entries": LOG_ENTRIES}
        )
        sides = [telling, mute, logging]
        maker = jobs.JobMaker()
        for side in sides:
            await side.measure([*maker.batches(1_000, BATCH)])
            side.rates.clear()
            side.script_us.clear()
        for number in range(rounds):
            plan.say(f"round {number + 1} of {rounds}")
            # Each comes first in turn, so that no side always follows the same one.
            for side in sides[number % 3 :] + sides[: number % 3]:
                await side.measure([*maker.batches(count, BATCH)])
        for side in sides:
            await side.check()
        entries = await store.command("XLEN", "jw:{logging}:log")
        check(entries > 0, "the event log is empty")
        size = await store.command("MEMORY", "USAGE", "jw:{logging}:log", "SAMPLES", 0)
    changes = 3 * (1_000 + rounds * count)
    return [
        compared(
            "submit to done, telling",
            telling.rates,
            "jobs/s",
            against="the same without telling",
            base=mute.rates,
            goal=Goal("at least", 0.95),
        ),
        compared(
            "scripts a job, telling",
            telling.script_us,
            "us",
            against="the same without telling",
            base=mute.script_us,
        ),
        compared(
            "submit to done, event log",
            logging.rates,
            "jobs/s",
            against="the same without a log",
            base=telling.rates,
        ),
        compared(
            "scripts a job, event log",
            logging.script_us,
            "us",
            against="the same without a log",
            base=telling.script_us,
        ),
        measured("the log, a change", [size / min(changes, entries * BATCH)], "bytes"),
    ]


BENCHMARK = Benchmark(
    name="watch-cost",
    summary="telling of changes while nobody watches, and an event log of 100,000 entries",
    run=run,
    full=Size(jobs=5_000, rounds=15),
    short=Size(jobs=1_000, rounds=5),
)

"""memory: what a pending job takes in the store.

Size: `jobs` jobs in all; one round is enough, for it is a count and not a time.
"""

from __future__ import annotations

from jobwire_server.domain.model import JobState

from benchmarks import jobs
from benchmarks.figures import Figure, Goal, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.processes import until
from benchmarks.stores import Store, open_store

GOAL = Goal("at most", 700)


async def run(plan: Plan) -> list[Figure]:
    """Submits the jobs to a new store in each round."""
    bytes_each: list[float] = []
    resident: list[float] = []
    for _ in range(plan.size.rounds):
        async with open_store(plan.engine) as store:
            layers = jobs.Layers(store)
            await _settled(store)
            before = await store.info("memory")
            await jobs.fill(layers, "default", plan.size.jobs, jobs.JobMaker(), plan.say)
            await _settled(store)
            after = await store.info("memory")
            depth = (await layers.queues.read("default", detail=False)).counts
            check(depth == {JobState.PENDING: plan.size.jobs}, f"the queue holds {depth}")
            plan.say(f"on {store.version}")
        bytes_each.append((after["used_memory"] - before["used_memory"]) / plan.size.jobs)
        resident.append((after["used_memory_rss"] - before["used_memory_rss"]) / plan.size.jobs)
    return [
        measured("memory a pending job", bytes_each, "bytes", goal=GOAL),
        measured("resident a pending job", resident, "bytes"),
    ]


async def _settled(store: Store) -> None:
    """Waits until the append-only file's buffer is written, which counts as used memory."""

    async def settled() -> bool:
        return int((await store.info("memory"))["mem_aof_buffer"]) < 65_536

    await until(settled, "the append-only file is written")


BENCHMARK = Benchmark(
    name="memory",
    summary=f"store memory of a pending job with {jobs.PAYLOAD_BYTES} bytes of payload",
    run=run,
    full=Size(jobs=1_000_000, rounds=1),
    short=Size(jobs=100_000, rounds=1),
    engine="redis",
)

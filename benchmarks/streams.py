"""streams: what an idle worker's stream costs, and what one busy stream carries.

Size: `jobs` jobs in each round over one stream; a tenth as many idle streams, 2,000 at most.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from time import perf_counter

from jobwire.v1 import job_service_pb2, job_service_pb2_grpc
from jobwire.v1 import worker_service_pb2 as pb

from benchmarks import jobs
from benchmarks.figures import Figure, Goal, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.processes import until
from benchmarks.servers import Server, open_broker
from benchmarks.stores import open_store
from benchmarks.workers import StreamWorker

MOST_IDLE = 2_000
CREDITS = 1_000
IDLE_S = 5.0
BATCH = 500


async def run(plan: Plan) -> list[Figure]:
    """Runs jobs over one stream, then opens idle ones at a server of their own."""
    count, rounds = plan.size.jobs, plan.size.rounds
    idle = max(10, min(MOST_IDLE, count // 10))
    rates = []
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        broker = await stack.enter_async_context(open_broker(store))
        for number in range(rounds):
            plan.say(f"round {number + 1} of {rounds}")
            rates.append(await _busy(broker, f"busy-{number}", count))
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        broker = await stack.enter_async_context(open_broker(store))
        grown, cpu = await _idle(stack, broker, idle, plan)
    return [
        measured("one stream, submit to done", rates, "jobs/s"),
        measured("an idle stream", [grown / 1024], "KiB", goal=Goal("at most", 64)),
        measured(f"{idle:,} idle streams", [cpu], "% of a core"),
    ]


async def _busy(broker: Server, worker_id: str, count: int) -> float:
    """Returns how many jobs a second one worker gets through while they are submitted."""
    delivered: dict[str, int] = {}

    def on_job(assignment: pb.Assignment) -> None:
        delivered[assignment.job_id] = delivered.get(assignment.job_id, 0) + 1

    async with broker.channel() as working, broker.channel() as producing:
        worker = StreamWorker(working, worker_id, credits=CREDITS, on_job=on_job)
        await worker.attach()
        stub = job_service_pb2_grpc.JobServiceStub(producing)
        submit = job_service_pb2.SubmitJobsRequest(requests=[jobs.request()] * min(BATCH, count))

        async def produce(_: int) -> None:
            await stub.SubmitJobs(submit)

        batches = max(1, count // BATCH)
        began = perf_counter()
        await jobs.each(batches, 4, produce)
        total = batches * len(submit.requests)

        async def done() -> bool:
            worker.check_alive()
            return len(delivered) >= total

        await until(done, "every job is delivered", pause_s=0.002)
        took = perf_counter() - began
        await worker.close()
    check(set(delivered.values()) == {1}, "a job was delivered twice")
    return total / took


async def _idle(
    stack: AsyncExitStack, broker: Server, count: int, plan: Plan
) -> tuple[float, float]:
    """Returns the bytes of a stream, and the share of a core that all of them take, in percent."""
    channels = [await stack.enter_async_context(broker.channel()) for _ in range(1 + count // 500)]
    workers = [
        StreamWorker(channels[at % len(channels)], f"idle-{at}", credits=10) for at in range(count)
    ]
    await workers[0].attach()
    before = broker.resident_bytes()
    for at in range(1, count, 100):
        await asyncio.gather(*(worker.attach() for worker in workers[at : at + 100]))
    grown = (broker.resident_bytes() - before) / (count - 1)
    plan.say(f"{count:,} idle streams are attached")
    await asyncio.sleep(2.0)
    used, began = broker.cpu_s(), perf_counter()
    await asyncio.sleep(IDLE_S)
    cpu = 100 * (broker.cpu_s() - used) / (perf_counter() - began)
    for worker in workers:
        await worker.close()
    return grown, cpu


BENCHMARK = Benchmark(
    name="streams",
    summary="bytes and CPU of idle Work streams, and the jobs a second over a single one",
    run=run,
    full=Size(jobs=20_000, rounds=5),
    short=Size(jobs=3_000, rounds=3),
)

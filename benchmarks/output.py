"""output: the output of one job in chunks of 64 bytes, from the worker's write to a watcher's read.

Size: `jobs` chunks in each round.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

from jobwire.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc
from jobwire.v1 import worker_service_pb2 as pb

from benchmarks import jobs
from benchmarks.figures import Figure, Goal, measured, quantile
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.processes import until
from benchmarks.servers import open_broker
from benchmarks.stores import open_store
from benchmarks.workers import StreamWorker

CHUNK_BYTES = 64
RATE = 200
"""Chunks a second where the time of each is measured: a fast model's tokens."""
GOAL_MS = 20


async def run(plan: Plan) -> list[Figure]:
    """Writes as fast as the stream takes it, then as tokens come."""
    count, rounds = plan.size.jobs, plan.size.rounds
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        broker = await stack.enter_async_context(open_broker(store))
        producing = await stack.enter_async_context(broker.channel())
        stub = job_service_pb2_grpc.JobServiceStub(producing)
        working = await stack.enter_async_context(broker.channel())
        rates: list[float] = []
        times: list[list[float]] = []
        worker = StreamWorker(working, "bench", credits=10, keep=True)
        await worker.attach()
        stack.push_async_callback(worker.close)
        for number in range(rounds):
            plan.say(f"round {number + 1} of {rounds}")
            rates.append(await _fast(stub, worker, count))
            times.append(await _paced(stub, worker, min(count, 2 * RATE)))
    return [
        measured("chunks of 64 bytes", rates, "chunks/s"),
        measured("write to read, p50", [1e3 * quantile(t, 0.5) for t in times], "ms"),
        measured(
            "write to read, p99",
            [1e3 * quantile(t, 0.99) for t in times],
            "ms",
            goal=Goal("at most", GOAL_MS),
        ),
    ]


class Reading:
    """A watcher that notes when each byte came."""

    def __init__(self, stub: Any, job_id: str) -> None:
        self.read = 0
        self.arrived: list[float] = []
        """When each chunk was there in full."""
        self._call = stub.WatchJob(
            job_service_pb2.WatchJobRequest(
                job_id=job_id, content=job_service_pb2.WATCH_CONTENT_OUTPUT
            )
        )
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for answer in self._call:
            for chunk in answer.output.chunks:
                check(chunk.offset == self.read, "output is missing or doubled")
                self.read += len(chunk.text)
            now = perf_counter()
            self.arrived += [now] * (self.read // CHUNK_BYTES - len(self.arrived))


async def _begin(stub: Any, worker: StreamWorker) -> tuple[pb.Assignment, Reading]:
    job_id = (await stub.SubmitJob(jobs.request())).job_id

    async def assigned() -> bool:
        return any(one.job_id == job_id for one in worker.held)

    await until(assigned, "the job is assigned", pause_s=0.002)
    lease = next(one for one in worker.held if one.job_id == job_id)
    reading = Reading(stub, job_id)
    return lease, reading


async def _write(worker: StreamWorker, lease: pb.Assignment, number: int) -> None:
    chunk = job_pb2.OutputChunk(
        channel="tokens", offset=number * CHUNK_BYTES, text="t" * CHUNK_BYTES
    )
    await worker.report(
        pb.Report(job_id=lease.job_id, fencing_token=lease.fencing_token, output=[chunk])
    )


async def _finish(worker: StreamWorker, lease: pb.Assignment, reading: Reading, count: int) -> None:
    async def read() -> bool:
        worker.check_alive()
        if reading.task.done():
            reading.task.result()
        return len(reading.arrived) >= count

    await until(read, "all output is read", pause_s=0.005)
    await worker.complete([lease])
    worker.held.remove(lease)
    await reading.task
    check(reading.read == count * CHUNK_BYTES, "output is missing or doubled")


async def _fast(stub: Any, worker: StreamWorker, count: int) -> float:
    lease, reading = await _begin(stub, worker)
    began = perf_counter()
    for number in range(count):
        await _write(worker, lease, number)
    await _finish(worker, lease, reading, count)
    return count / (reading.arrived[-1] - began)


async def _paced(stub: Any, worker: StreamWorker, count: int) -> list[float]:
    lease, reading = await _begin(stub, worker)
    loop = asyncio.get_running_loop()
    start = loop.time()
    written = []
    for number in range(count):
        await asyncio.sleep(max(0.0, start + number / RATE - loop.time()))
        written.append(perf_counter())
        await _write(worker, lease, number)
    await _finish(worker, lease, reading, count)
    return [came - went for went, came in zip(written, reading.arrived, strict=True)]


BENCHMARK = Benchmark(
    name="output",
    summary="one job's output in chunks of 64 bytes, from the worker's write to a watcher's read",
    run=run,
    full=Size(jobs=5_000, rounds=7),
    short=Size(jobs=1_000, rounds=3),
)

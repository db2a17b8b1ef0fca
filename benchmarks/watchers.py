"""watchers: what a WatchJob stream costs, and how soon the last of many is told of a change.

Size: `jobs` streams at one server process, 1,000 of them of one job.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

from jobwire.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc, worker_service_pb2
from jobwire.v1 import worker_service_pb2_grpc as worker_grpc

from benchmarks import jobs
from benchmarks.figures import Figure, Goal, compared, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.servers import Server, open_bare_streams, open_broker
from benchmarks.stores import open_store
from benchmarks.streaming import TELL, WATCH
from benchmarks.watching import Crowd

METHOD = "/jobwire.v1.JobService/WatchJob"
OF_ONE_JOB = 1_000
IDLE_S = 3.0
ANSWER_BYTES = 400
PATIENT = ("--worker-timeout", "10m")
"""The worker makes no calls but for the changes that are measured."""


async def run(plan: Plan) -> list[Figure]:
    """Opens the streams at both, one after the other, and tells 1,000 of them by turns."""
    count, rounds = plan.size.jobs, plan.size.rounds
    crowd_of_one = min(OF_ONE_JOB, count)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        broker = await stack.enter_async_context(open_broker(store, *PATIENT))
        bare = await stack.enter_async_context(open_bare_streams(ANSWER_BYTES))
        channel = await stack.enter_async_context(broker.channel())
        submit = job_service_pb2_grpc.JobServiceStub(channel)
        workers = worker_grpc.WorkerServiceStub(channel)
        spec = worker_service_pb2.WorkerSpec(worker_id="bench", operations=[jobs.OPERATION])
        spec.lease_duration.FromSeconds(3600)
        await workers.RegisterWorker(worker_service_pb2.RegisterWorkerRequest(worker=spec))
        ids = [
            (await submit.SubmitJob(jobs.request())).job_id
            for _ in range(1 + (count - crowd_of_one) // 10 + 1)
        ]
        claim = worker_service_pb2.ClaimJobRequest(worker_id="bench", job_id=ids[0])
        lease = (await workers.ClaimJob(claim)).assignments[0]
        others = [ids[1 + number // 10] for number in range(count - crowd_of_one)]
        requests = [
            job_service_pb2.WatchJobRequest(job_id=job_id).SerializeToString()
            for job_id in [ids[0]] * crowd_of_one + others
        ]
        bare_requests = [b"one"] * crowd_of_one + [b"other"] * (count - crowd_of_one)
        watching, grown = await _opened(stack, plan, broker, METHOD, requests)
        waiting, bare_grown = await _opened(stack, plan, bare, WATCH, bare_requests)

        idle, bare_idle = await _idle(broker), await _idle(bare)
        tell: Any = (await stack.enter_async_context(bare.channel())).unary_unary(TELL)
        slow: list[float] = []
        bare_slow: list[float] = []
        report = worker_service_pb2.UpdateProgressRequest(
            worker_id="bench", job_id=lease.job_id, fencing_token=lease.fencing_token
        )
        for number in range(rounds):
            plan.say(f"round {number + 1} of {rounds}")
            news = number + 2
            began = perf_counter()
            await tell(b"one")
            await waiting.until(news, 0, crowd_of_one)
            bare_slow.append(waiting.last_at - began)
            report.progress.CopyFrom(job_pb2.Progress(message=str(number)))
            began = perf_counter()
            await workers.UpdateProgress(report)
            await watching.until(news, 0, crowd_of_one)
            slow.append(watching.last_at - began)
        check(watching.told[:crowd_of_one] == [rounds + 1] * crowd_of_one, "a watcher missed one")
        check(set(watching.told[crowd_of_one:]) <= {1}, "a watcher was told of another job")
    return [
        compared(
            "a stream",
            [grown / count],
            "bytes",
            against="a bare stream",
            base=[bare_grown / count],
            goal=Goal("at most", 1.5),
        ),
        measured("idle", [idle], "% of a core", goal=Goal("at most", 2)),
        measured("idle, bare", [bare_idle], "% of a core"),
        compared(
            f"told the last of {crowd_of_one:,}",
            [1e3 * value for value in slow],
            "ms",
            against="bare streams",
            base=[1e3 * value for value in bare_slow],
            goal=Goal("at most", 2),
        ),
    ]


async def _opened(
    stack: AsyncExitStack, plan: Plan, server: Server, method: str, requests: list[bytes]
) -> tuple[Crowd, int]:
    """Opens streams; returns them and the bytes that the server grew by."""
    crowd = Crowd(server.address, method)
    stack.push_async_callback(crowd.close)
    # One first, so that what comes with any stream at all does not count.
    await crowd.open(requests[:1])
    before = server.resident_bytes()
    await crowd.open(requests[1:])
    plan.say(f"{len(requests):,} streams of {method} are open")
    return crowd, server.resident_bytes() - before


async def _idle(server: Server) -> float:
    """Returns the share of a core that a server uses while nothing happens, in percent."""
    await asyncio.sleep(1.0)
    before, began = server.cpu_s(), perf_counter()
    await asyncio.sleep(IDLE_S)
    return 100 * (server.cpu_s() - before) / (perf_counter() - began)


BENCHMARK = Benchmark(
    name="watchers",
    summary="many WatchJob streams: bytes, CPU at rest, time to tell the last, against bare ones",
    run=run,
    full=Size(jobs=10_000, rounds=15),
    short=Size(jobs=1_000, rounds=5),
)

"""dispatch-latency: from the call that submits a job to the answer that hands it to a worker, which
waits for it with a long poll or on a stream; and from `submit` in one program that uses the SDK to
the first line of the handler in another.

Size: `jobs` jobs in each round, 100 a second, with workers waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter
from typing import Any

from google.protobuf.duration_pb2 import Duration

from jobwire.v1 import job_service_pb2, job_service_pb2_grpc, worker_service_pb2
from jobwire.v1 import worker_service_pb2_grpc as worker_grpc
from jobwire_server.domain.model import JobState

from benchmarks import backlogged, jobs
from benchmarks.done import Done
from benchmarks.echo import METHOD
from benchmarks.figures import Figure, Goal, compared, measured, quantile
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.processes import until
from benchmarks.servers import open_broker, open_echo
from benchmarks.stores import open_store
from benchmarks.submit_one import open_producer, open_worked
from benchmarks.workers import StreamWorker

RATE = 100
WORKERS = 4
"""Enough that one is always waiting while another completes the job before."""
WAIT_S = 30
ARRIVAL_DEADLINE_S = 30.0
ANSWER_BYTES = 38
WARM_UP = 50
STREAM_CREDITS = 100
GOALS = {0.5: Goal("at most", 3), 0.99: Goal("at most", 6)}
SDK_GOALS = {0.5: Goal("at most", 2), 0.99: Goal("at most", 4)}
STREAM_GOALS_MS = {0.5: Goal("at most", 2), 0.99: Goal("at most", 8)}


class Workers:
    """Workers that wait for jobs with long polls, note when each came, and complete it."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self.arrived: dict[int, float] = {}
        self.deliveries = 0

    async def work(self, worker_id: str) -> None:
        """Works until cancelled."""
        spec = worker_service_pb2.WorkerSpec(worker_id=worker_id, operations=[jobs.OPERATION])
        await self._stub.RegisterWorker(worker_service_pb2.RegisterWorkerRequest(worker=spec))
        claim = worker_service_pb2.ClaimJobRequest(
            worker_id=worker_id, wait=Duration(seconds=WAIT_S)
        )
        while True:
            answer = await self._stub.ClaimJob(claim, timeout=WAIT_S + 10)
            at = perf_counter()
            for assignment in answer.assignments:
                number = int.from_bytes(assignment.spec.payload.data[:8], "big")
                self.arrived.setdefault(number, at)
                self.deliveries += 1
                await self._stub.CompleteJob(
                    worker_service_pb2.CompleteJobRequest(
                        worker_id=worker_id,
                        completion=worker_service_pb2.Completion(
                            job_id=assignment.job_id,
                            fencing_token=assignment.fencing_token,
                            success=worker_service_pb2.Success(),
                        ),
                    )
                )


async def run(plan: Plan) -> list[Figure]:
    """Measures all by turns, in one quiet client process."""
    count, rounds = plan.size.jobs, plan.size.rounds
    latencies: list[list[float]] = []
    streamed: list[list[float]] = []
    trips: list[list[float]] = []
    handled: list[list[float]] = []
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        broker = await stack.enter_async_context(open_broker(store))
        bare = await stack.enter_async_context(open_echo(ANSWER_BYTES))
        producing = await stack.enter_async_context(broker.channel())
        submit = job_service_pb2_grpc.JobServiceStub(producing).SubmitJob
        echoing = await stack.enter_async_context(bare.channel())
        echo = echoing.unary_unary(
            METHOD,
            request_serializer=job_service_pb2.SubmitJobRequest.SerializeToString,
            response_deserializer=job_service_pb2.SubmitJobResponse.FromString,
        )
        working = await stack.enter_async_context(broker.channel())
        workers = Workers(worker_grpc.WorkerServiceStub(working))
        tasks = [
            asyncio.create_task(workers.work(f"bench-{number}"), name=f"worker-{number}")
            for number in range(WORKERS)
        ]
        stack.push_async_callback(_end, tasks)

        # A store and a server of its own, so that the two kinds of workers don't share the jobs.
        other = await stack.enter_async_context(open_store(plan.engine))
        streaming = await stack.enter_async_context(open_broker(other))
        stream_producing = await stack.enter_async_context(streaming.channel())
        stream_submit = job_service_pb2_grpc.JobServiceStub(stream_producing).SubmitJob
        arrived: dict[int, float] = {}
        deliveries = 0

        def on_job(assignment: worker_service_pb2.Assignment) -> None:
            nonlocal deliveries
            deliveries += 1
            number = int.from_bytes(assignment.spec.payload.data[:8], "big")
            arrived.setdefault(number, perf_counter())

        stream_working = await stack.enter_async_context(streaming.channel())
        worker = StreamWorker(stream_working, "bench", credits=STREAM_CREDITS, on_job=on_job)
        await worker.attach()
        stack.push_async_callback(worker.close)

        sdk_server, sdk_done = await stack.enter_async_context(open_worked(plan, "stamped"))
        sdk = (await open_producer(stack, "sdk", sdk_server)).producer

        async def sdk_dispatch(total: int) -> list[float]:
            took: list[float] = (await sdk.ask(f"paced {total} {RATE}"))["took_s"]
            await sdk_done.all_of(total)
            check(len(took) == total, "a job has no result")
            return took

        async def stream_dispatch(first: int, total: int) -> list[float]:
            began: dict[int, float] = {}

            async def send(number: int) -> None:
                request = _request(first + number)
                began[first + number] = perf_counter()
                await stream_submit(request)

            await jobs.paced(total, RATE, send)

            async def all_there() -> bool:
                worker.check_alive()
                return len(arrived) >= first + total

            await until(all_there, "every job is assigned", pause_s=0.005)
            return [arrived[number] - at for number, at in began.items()]

        async def dispatch(first: int, total: int) -> list[float]:
            began: dict[int, float] = {}

            async def send(number: int) -> None:
                request = _request(first + number)
                began[first + number] = perf_counter()
                await submit(request)

            await jobs.paced(total, RATE, send)
            await _arrival(workers, first + total, tasks)
            return [workers.arrived[number] - at for number, at in began.items()]

        async def round_trips(total: int) -> list[float]:
            took: list[float] = []

            async def send(number: int) -> None:
                request = _request(number)
                at = perf_counter()
                await echo(request)
                took.append(perf_counter() - at)

            await jobs.paced(total, RATE, send)
            return took

        await dispatch(0, WARM_UP)
        await stream_dispatch(0, WARM_UP)
        await sdk_dispatch(WARM_UP)
        await round_trips(WARM_UP)
        for number in range(rounds):
            plan.say(f"round {number + 1} of {rounds}")
            trips.append(await round_trips(count))
            latencies.append(await dispatch(WARM_UP + number * count, count))
            streamed.append(await stream_dispatch(WARM_UP + number * count, count))
            handled.append(await sdk_dispatch(count))
        check(workers.deliveries == WARM_UP + rounds * count, "a job was delivered twice")
        check(deliveries == workers.deliveries, "a job was assigned twice")
        await _all_done(jobs.Layers(store), workers.deliveries)
        await _all_done(jobs.Layers(other), deliveries)
    polled = _against_trips("submit to claim", latencies, trips, GOALS)
    pushed = [
        measured(
            f"submit to assignment, p{fraction * 100:g}",
            [quantile(values, fraction) * 1e3 for values in streamed],
            "ms",
            goal=goal,
        )
        for fraction, goal in STREAM_GOALS_MS.items()
    ]
    pushed_against_bare = _against_trips("the same", streamed, trips, dict.fromkeys(GOALS))
    sdk_to_sdk = _against_trips("SDK to SDK's handler", handled, trips, SDK_GOALS)
    return polled + pushed + pushed_against_bare + sdk_to_sdk


def _against_trips(
    name: str,
    latencies: list[list[float]],
    trips: list[list[float]],
    goals: Mapping[float, Goal | None],
) -> list[Figure]:
    return [
        compared(
            f"{name}, p{fraction * 100:g}",
            [quantile(values, fraction) * 1e6 for values in latencies],
            "us",
            against="a bare round trip",
            base=[quantile(values, fraction) * 1e6 for values in trips],
            goal=goal,
        )
        for fraction, goal in goals.items()
    ]


@asynccontextmanager
async def _open_stream_side(plan: Plan, backlog: int) -> AsyncIterator[backlogged.Measure]:
    """Starts a broker with a worker on a stream; measures the median time to it, in ms."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        broker = await stack.enter_async_context(open_broker(store))
        if backlog:
            await backlogged.fill(store, plan, backlog)
        producing = await stack.enter_async_context(broker.channel())
        submit = job_service_pb2_grpc.JobServiceStub(producing).SubmitJob
        arrived: dict[int, float] = {}
        deliveries = 0

        def on_job(assignment: worker_service_pb2.Assignment) -> None:
            nonlocal deliveries
            deliveries += 1
            arrived[int.from_bytes(assignment.spec.payload.data[:8], "big")] = perf_counter()

        working = await stack.enter_async_context(broker.channel())
        worker = StreamWorker(working, "bench", credits=STREAM_CREDITS, on_job=on_job)
        await worker.attach()
        stack.push_async_callback(worker.close)
        done = Done(store, backlog=backlog)

        async def measure(total: int) -> float:
            began: dict[int, float] = {}

            async def send(number: int) -> None:
                began[done.count + number] = perf_counter()
                await submit(_request(done.count + number))

            await jobs.paced(total, RATE, send)
            await done.all_of(total)
            return quantile([arrived[at] - began[at] for at in began], 0.5) * 1e3

        await measure(WARM_UP)
        yield lambda: measure(plan.size.jobs)
        await done.check()
        check(deliveries == done.count, "a job was assigned twice")


async def run_backlog(plan: Plan) -> list[Figure]:
    """Measures the stream's median with and without jobs waiting on another route."""
    return await backlogged.with_and_without(
        plan, _open_stream_side, "submit to assignment, p50", "ms", backlogged.TIME_GOAL
    )


def _request(number: int) -> job_service_pb2.SubmitJobRequest:
    return jobs.request(number.to_bytes(8, "big").ljust(jobs.PAYLOAD_BYTES, b"."))


async def _arrival(workers: Workers, total: int, tasks: list[asyncio.Task[None]]) -> None:
    async with asyncio.timeout(ARRIVAL_DEADLINE_S):
        while len(workers.arrived) < total:
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.005)


async def _all_done(layers: jobs.Layers, expected: int) -> None:
    async def finished() -> bool:
        depth = (await layers.queues.read("default", detail=False)).counts
        return depth == {JobState.SUCCEEDED: expected}

    await until(finished, f"all {expected} jobs have succeeded")


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


BENCHMARK = Benchmark(
    name="dispatch-latency",
    summary=f"from submit to claim or stream at {RATE} jobs a second, against a bare round trip",
    run=run,
    full=Size(jobs=500, rounds=7),
    short=Size(jobs=300, rounds=3),
    run_backlog=run_backlog,
)

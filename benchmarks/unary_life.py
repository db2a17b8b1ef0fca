"""unary-life: jobs that are submitted, claimed and completed by single calls, against a bare echo.

Size: `jobs` jobs in each round, and as many echoes as they need calls.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

from google.protobuf.duration_pb2 import Duration

from jobwire.v1 import job_pb2
from jobwire.v1 import worker_service_pb2 as pb
from jobwire.v1 import worker_service_pb2_grpc as worker_grpc

from benchmarks import jobs
from benchmarks.done import Done
from benchmarks.figures import Figure, Goal, compared, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.servers import Server, open_broker, open_echo
from benchmarks.stores import open_store
from benchmarks.submit_unary import SUBMIT, Echo, answer_bytes, stubs

WORKERS = 50
SUBMITS_IN_FLIGHT = 50
WAIT_S = 20
WARM_UP = 500
GOAL = Goal("at least", 0.5)


class UnaryWorkers:
    """Workers that complete each job with a call that also brings the next one.

    Args:
        stubs: Of the worker service, one a connection.
    """

    def __init__(self, stubs: list[Any]) -> None:
        self._stubs = stubs
        self.deliveries: dict[str, int] = {}
        self.calls = 0

    async def work(self, number: int) -> None:
        """Works until cancelled."""
        stub, name = self._stubs[number % len(self._stubs)], f"bench-{number}"
        spec = pb.WorkerSpec(worker_id=name, operations=[jobs.OPERATION])
        await stub.RegisterWorker(pb.RegisterWorkerRequest(worker=spec))
        wait = Duration(seconds=WAIT_S)
        held: list[pb.Assignment] = []
        while True:
            if held:
                answer = await stub.CompleteJob(_completion(name, held.pop(), wait))
            else:
                answer = await stub.ClaimJob(pb.ClaimJobRequest(worker_id=name, wait=wait))
            self.calls += 1
            for job in answer.assignments:
                self.deliveries[job.job_id] = self.deliveries.get(job.job_id, 0) + 1
                held.append(job)


def _completion(worker_id: str, job: pb.Assignment, wait: Duration) -> pb.CompleteJobRequest:
    return pb.CompleteJobRequest(
        worker_id=worker_id,
        completion=pb.Completion(
            job_id=job.job_id,
            fencing_token=job.fencing_token,
            success=pb.Success(result=job_pb2.Payload(data=b"done")),
        ),
        claim_next=pb.ClaimNext(wait=wait),
    )


async def _worker_stubs(stack: AsyncExitStack, server: Server) -> list[Any]:
    channels = [await stack.enter_async_context(server.channel()) for _ in range(2)]
    return [worker_grpc.WorkerServiceStub(channel) for channel in channels]


async def run(plan: Plan) -> list[Figure]:
    """Measures both servers by turns."""
    count = plan.size.jobs
    rates: list[float] = []
    bounds: list[float] = []
    calls_each: list[float] = []
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        server = await stack.enter_async_context(open_broker(store, profile=plan.profile("server")))
        submits = await stubs(stack, server, SUBMIT)
        workers = UnaryWorkers(await _worker_stubs(stack, server))
        tasks = [asyncio.create_task(workers.work(number)) for number in range(WORKERS)]
        stack.push_async_callback(_end, tasks)
        requests = [jobs.request() for _ in range(64)]
        done = Done(store)

        async def submit(number: int) -> None:
            await submits[number % len(submits)](requests[number % 64])

        async def life(total: int) -> float:
            began = perf_counter()
            await jobs.each(total, SUBMITS_IN_FLIGHT, submit)
            await done.all_of(total, tasks)
            return total / (perf_counter() - began)

        size = answer_bytes()
        bare = await stack.enter_async_context(open_echo(size))
        echo = Echo(await stubs(stack, bare), size)
        await life(min(WARM_UP, count))
        await echo.rate(min(WARM_UP, count), SUBMITS_IN_FLIGHT + WORKERS)
        for number in range(plan.size.rounds):
            plan.say(f"round {number + 1} of {plan.size.rounds}")
            before = workers.calls
            rates.append(await life(count))
            calls = 1 + (workers.calls - before) / count
            calls_each.append(calls)
            bounds.append(await echo.rate(count, SUBMITS_IN_FLIGHT + WORKERS) / calls)
        await done.check()
        check(set(workers.deliveries.values()) == {1}, "a job was delivered twice")
        check(len(workers.deliveries) == done.count, "a job was not delivered")
    return [
        compared(
            "submit, claim and complete",
            rates,
            "jobs/s",
            against="as many bare echoes",
            base=bounds,
            goal=GOAL,
        ),
        measured("calls a job", calls_each, "calls"),
    ]


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


BENCHMARK = Benchmark(
    name="unary-life",
    summary=f"SubmitJob, ClaimJob and CompleteJob with {WORKERS} workers, against a bare echo",
    run=run,
    full=Size(jobs=4_000, rounds=9),
    short=Size(jobs=2_000, rounds=3),
)

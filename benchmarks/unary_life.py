"""unary-life: jobs that are submitted, claimed and completed by single calls, against a bare echo.

Size: `jobs` jobs in each round, and as many echoes as they need calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from google.protobuf.duration_pb2 import Duration

from jobwire.v1 import job_pb2, job_service_pb2
from jobwire.v1 import worker_service_pb2 as pb
from jobwire.v1 import worker_service_pb2_grpc as worker_grpc

from benchmarks import backlogged, jobs
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
NAME = "submit, claim and complete"


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


@dataclass(slots=True)
class Lives:
    """A broker with producers and workers in this process."""

    workers: UnaryWorkers
    tasks: list[asyncio.Task[None]]
    done: Done
    submits: list[Any]
    requests: list[job_service_pb2.SubmitJobRequest]

    async def through(self, count: int) -> float:
        """Has jobs submitted and worked; returns the jobs a second, the last one stored."""
        began = perf_counter()

        async def submit(number: int) -> None:
            call = self.submits[number % len(self.submits)]
            await call(self.requests[number % len(self.requests)])

        await jobs.each(count, SUBMITS_IN_FLIGHT, submit)
        await self.done.all_of(count, self.tasks)
        return count / (perf_counter() - began)

    async def check(self) -> None:
        """Checks that each job was delivered once, and is done."""
        await self.done.check()
        deliveries = self.workers.deliveries
        check(set(deliveries.values()) == {1}, "a job was delivered twice")
        check(len(deliveries) == self.done.count, "a job was not delivered")


@asynccontextmanager
async def open_lives(plan: Plan, backlog: int) -> AsyncIterator[Lives]:
    """Starts and warms up all that is needed; checks the jobs at the end."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        server = await stack.enter_async_context(open_broker(store, profile=plan.profile("server")))
        if backlog:
            await backlogged.fill(store, plan, backlog)
        submits = await stubs(stack, server, SUBMIT)
        workers = UnaryWorkers(await _worker_stubs(stack, server))
        tasks = [asyncio.create_task(workers.work(number)) for number in range(WORKERS)]
        stack.push_async_callback(_end, tasks)
        done = Done(store, backlog=backlog)
        lives = Lives(workers, tasks, done, submits, [jobs.request() for _ in range(64)])
        await lives.through(min(WARM_UP, plan.size.jobs))
        yield lives
        await lives.check()


async def run(plan: Plan) -> list[Figure]:
    """Measures both servers by turns."""
    count = plan.size.jobs
    rates: list[float] = []
    bounds: list[float] = []
    calls_each: list[float] = []
    async with AsyncExitStack() as stack:
        lives = await stack.enter_async_context(open_lives(plan, 0))
        size = answer_bytes()
        bare = await stack.enter_async_context(open_echo(size))
        echo = Echo(await stubs(stack, bare), size)
        await echo.rate(min(WARM_UP, count), SUBMITS_IN_FLIGHT + WORKERS)
        for number in range(plan.size.rounds):
            plan.say(f"round {number + 1} of {plan.size.rounds}")
            before = lives.workers.calls
            rates.append(await lives.through(count))
            calls = 1 + (lives.workers.calls - before) / count
            calls_each.append(calls)
            bounds.append(await echo.rate(count, SUBMITS_IN_FLIGHT + WORKERS) / calls)
    return [
        compared(
            NAME,
            rates,
            "jobs/s",
            against="as many bare echoes",
            base=bounds,
            goal=GOAL,
        ),
        measured("calls a job", calls_each, "calls"),
    ]


async def run_backlog(plan: Plan) -> list[Figure]:
    """Measures with and without jobs waiting on another route."""

    @asynccontextmanager
    async def open_side(plan: Plan, backlog: int) -> AsyncIterator[backlogged.Measure]:
        async with open_lives(plan, backlog) as lives:
            yield lambda: lives.through(plan.size.jobs)

    return await backlogged.with_and_without(plan, open_side, NAME, "jobs/s")


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
    run_backlog=run_backlog,
)

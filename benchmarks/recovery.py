"""How soon work goes on after a kill, with the server's default settings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter

from jobwire import AsyncClient, Context, Worker

from benchmarks.figures import Figure, Goal, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.jobs import OPERATION
from benchmarks.parts import module, open_part
from benchmarks.servers import Server, open_broker
from benchmarks.stores import Store, open_store

SERVERS = 3
SPREAD_S = 2.0
"""Within so long the kills of a round come, at moments by chance."""
PATIENCE_S = 60.0
SETTINGS: tuple[str, ...] = ()
"""Of the brokers, other than the default ones: for the test of the benchmark, which has no time."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is killed."""

    name: str
    goal_s: float
    """For the 99th percentile."""
    way: str = "stream"
    same_id: bool = False
    """The worker is started anew under its id, at once."""
    with_server: bool = False


CASES = (
    Case("stream worker", 5),
    Case("stream worker, old id", 5, same_id=True),
    Case("unary worker", 10, way="unary"),
    Case("unary worker, old id", 10, way="unary", same_id=True),
    Case("worker and its server", 8, with_server=True),
)
SUBMISSION, HANDLER = "one of three servers, submission", "one of three servers, handler"


class Standby:
    """A worker that takes what comes back, and notes when."""

    def __init__(self, target: str, queue: str, credits_: int) -> None:
        self.taken: dict[str, asyncio.Future[float]] = {}
        self.worker = Worker(target, queues=[queue], concurrency=max(1, credits_), prefetch=0)

        @self.worker.operation(OPERATION)
        async def take(context: Context) -> None:
            self.when(context.job_id).set_result(perf_counter())

    def when(self, job_id: str) -> asyncio.Future[float]:
        """Returns the moment at which it took a job, once it has."""
        if job_id not in self.taken:
            self.taken[job_id] = asyncio.get_running_loop().create_future()
        return self.taken[job_id]


@contextlib.asynccontextmanager
async def _dying(target: str, queue: str, way: str, name: str) -> AsyncIterator[tuple[int, str]]:
    """Runs a worker until it holds a job; gives its process id and the job."""
    async with open_part(module("benchmarks.dying", target, queue, way, name)) as part:
        held = await part.answer()
        yield part.pid, held["job"]


async def _kills(case: Case, target: str, kills: int) -> list[float]:
    """Kills so many workers, each with a job; returns how long each job took to start again."""
    queue = f"recovery-{secrets.token_hex(4)}"
    names = [f"{queue}-{number}" for number in range(kills)]
    async with AsyncClient(target) as client, contextlib.AsyncExitStack() as stack:
        for _ in range(kills):
            await client.submit(OPERATION, queue=queue)
        victims = await asyncio.gather(
            *(stack.enter_async_context(_dying(target, queue, case.way, name)) for name in names)
        )
        standby = Standby(target, queue, kills)
        await stack.enter_async_context(standby.worker)

        async def kill(pid: int, job_id: str, name: str) -> float:
            await asyncio.sleep(random.uniform(0, SPREAD_S))
            os.kill(pid, signal.SIGKILL)
            began = perf_counter()
            again: Worker | None = None
            if case.same_id:
                # It takes another job at most, of a queue that has none.
                again = Worker(
                    target, queues=[queue], concurrency=1, prefetch=0, worker_id=name,
                    transport="unary" if case.way == "unary" else "stream",
                )  # fmt: skip

                @again.operation(f"{OPERATION}.other")
                async def other(context: Context) -> None: ...

                await stack.enter_async_context(again)
            async with asyncio.timeout(PATIENCE_S):
                return await standby.when(job_id) - began

        return await asyncio.gather(
            *(kill(pid, job, name) for (pid, job), name in zip(victims, names, strict=True))
        )


async def _kills_with_server(store: Store, target: str, kills: int) -> list[float]:
    """Kills workers together with the one server that they are attached to."""
    queue = f"recovery-{secrets.token_hex(4)}"
    async with (
        AsyncClient(target) as client,
        open_broker(store, *SETTINGS) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(kills):
            await client.submit(OPERATION, queue=queue)
        victims = await asyncio.gather(
            *(
                stack.enter_async_context(_dying(server.address, queue, "stream", f"{queue}-{at}"))
                for at in range(kills)
            )
        )
        standby = Standby(target, queue, kills)
        await stack.enter_async_context(standby.worker)
        await asyncio.sleep(random.uniform(0, SPREAD_S))
        for pid in (server.pid, *(pid for pid, _ in victims)):
            os.kill(pid, signal.SIGKILL)
        began = perf_counter()
        async with asyncio.timeout(PATIENCE_S):
            return [await standby.when(job) - began for _, job in victims]


async def _kill_of_a_server(store: Store, others: list[Server]) -> tuple[float, float]:
    """Kills one of three servers; returns how long the next submission and its start take."""
    queue = f"recovery-{secrets.token_hex(4)}"
    async with open_broker(store, *SETTINGS) as victim:
        servers = [victim, *others[: SERVERS - 1]]
        target = ",".join(server.address for server in servers)
        standby = Standby(target, queue, 1)
        async with AsyncClient(target) as client, standby.worker:
            first = await client.submit(OPERATION, queue=queue)
            await standby.when(first.id)
            os.kill(victim.pid, signal.SIGKILL)
            began = perf_counter()
            job = await client.submit(OPERATION, queue=queue)
            accepted = perf_counter()
            async with asyncio.timeout(PATIENCE_S):
                started = await standby.when(job.id)
            return accepted - began, started - began


async def _run(plan: Plan) -> list[Figure]:
    times: dict[str, list[float]] = {case.name: [] for case in CASES}
    times[SUBMISSION], times[HANDLER] = [], []
    async with open_store(plan.engine) as store, contextlib.AsyncExitStack() as stack:
        servers = await asyncio.gather(
            *(stack.enter_async_context(open_broker(store, *SETTINGS)) for _ in range(SERVERS))
        )
        target = ",".join(server.address for server in servers)
        for number in range(plan.size.rounds):
            # At once: they mostly wait.
            found = await asyncio.gather(
                *(
                    _kills_with_server(store, target, plan.size.jobs)
                    if case.with_server
                    else _kills(case, target, plan.size.jobs)
                    for case in CASES
                )
            )
            for case, each in zip(CASES, found, strict=True):
                times[case.name] += each
            for _ in range(plan.size.jobs):
                accepted, started = await _kill_of_a_server(store, servers)
                times[SUBMISSION].append(accepted)
                times[HANDLER].append(started)
            plan.say(f"round {number + 1} of {plan.size.rounds}")
    goals = {case.name: case.goal_s for case in CASES} | {SUBMISSION: 1, HANDLER: 2}
    expected = plan.size.jobs * plan.size.rounds
    check(all(len(each) == expected for each in times.values()), "a job did not come back")
    return [figure for name in times for figure in _figures(name, times[name], goals[name])]


def _figures(name: str, times: list[float], goal_s: float) -> list[Figure]:
    cuts = quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    return [
        measured(f"{name}, p50", [cuts[49]], "s"),
        measured(f"{name}, p99", [cuts[98]], "s", goal=Goal("at most", goal_s)),
    ]


BENCHMARK = Benchmark(
    name="recovery",
    summary="how soon jobs start again after kills of workers and servers",
    run=_run,
    full=Size(jobs=10, rounds=5),
    short=Size(jobs=4, rounds=1),
    in_short=False,
)

"""idle: what queues cost that nobody uses, and what a worker costs that serves many of them.

Size: `jobs` queues, with one job each that nobody takes; `rounds` windows of some seconds. The
figures are the CPU time of all servers and the store together, in percent of a core; that of queues
is what they add to servers without any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from time import monotonic

from jobwire import Worker
from jobwire.v1 import admin_service_pb2, admin_service_pb2_grpc, job_service_pb2
from jobwire.v1 import job_service_pb2_grpc as jobs_grpc

from benchmarks import jobs
from benchmarks.figures import Figure, Goal, compared, measured
from benchmarks.frame import Benchmark, Plan, Size, check
from benchmarks.servers import Server, open_broker
from benchmarks.stores import Store, open_store

GOAL = Goal("at most", 2.0)
SAME = Goal("at most", 1.3)
SERVERS = 3
SERVED = 64
"""Queues of one worker."""
QUIET_S = 30.0
"""By then every server has found that nobody writes to the queues."""
WINDOW_S = 10.0
BATCH = 50
"""Of new queues, each of which takes calls of its own."""


async def _percent(servers: Sequence[Server], store: Store, windows: int) -> list[float]:
    """Returns what all of them took of a core, for each window."""
    found = []
    for _ in range(windows):
        before, began = await _cpu_s(servers, store), monotonic()
        await asyncio.sleep(WINDOW_S)
        found.append(100 * (await _cpu_s(servers, store) - before) / (monotonic() - began))
    return found


async def _cpu_s(servers: Sequence[Server], store: Store) -> float:
    return sum(server.cpu_s() for server in servers) + await store.cpu_us() / 1e6


async def _fill(server: Server, queues: int) -> None:
    """Makes queues with a job each."""
    async with server.channel() as channel:
        stub = jobs_grpc.JobServiceStub(channel)
        waiting = list(range(queues))
        while waiting:
            some, waiting = waiting[:BATCH], waiting[BATCH:]
            request = job_service_pb2.SubmitJobsRequest()
            for number in some:
                request.requests.add().CopyFrom(jobs.request(b""))
                request.requests[-1].queue = f"idle-{number}"
                request.requests[-1].request_id = "once"
            answer = await stub.SubmitJobs(request)
            # So many queues in use at once are more than a busy machine keeps up with.
            outcomes = zip(some, answer.results, strict=True)
            waiting += [number for number, each in outcomes if not each.HasField("accepted")]


async def _count(server: Server, queues: int) -> None:
    """Checks that the queues are there, each with its job."""
    async with server.channel() as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        request, found = admin_service_pb2.ListQueuesRequest(page_size=256), 0
        while True:
            answer = await stub.ListQueues(request)
            found += sum(queue.counts[0].count == 1 for queue in answer.queues)
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
    check(found == queues, f"{found} queues hold a job, not {queues}")


async def run(plan: Plan) -> list[Figure]:
    """Measures one server, three, and a worker on it."""
    queues, windows = plan.size.jobs, plan.size.rounds
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(plan.engine))
        servers = [await stack.enter_async_context(open_broker(store))]
        plan.say(f"one server without queues, and {SERVERS}")
        empty = await _percent(servers, store, windows)
        async with AsyncExitStack() as others:
            three = [*servers]
            for _ in range(SERVERS - 1):
                three.append(await others.enter_async_context(open_broker(store)))
            empty_three = await _percent(three, store, windows)
        one, many = [await _served(servers, store, count, plan) for count in (1, SERVED)]
        await _fill(servers[0], queues)
        plan.say(f"one server and {queues:,} queues")
        await asyncio.sleep(QUIET_S)
        alone = await _percent(servers, store, windows)
        for _ in range(SERVERS - 1):
            servers.append(await stack.enter_async_context(open_broker(store)))
        plan.say(f"{SERVERS} servers and {queues:,} queues")
        await asyncio.sleep(QUIET_S)
        together = await _percent(servers, store, windows)
        await _count(servers[0], queues)
    unit = "% of a core"
    return [
        measured("one server without queues", empty, unit),
        measured(f"{SERVERS} servers without queues", empty_three, unit),
        measured(f"{queues:,} idle queues, one server", _more(alone, empty), unit, goal=GOAL),
        measured(
            f"{queues:,} idle queues, {SERVERS} servers",
            _more(together, empty_three),
            unit,
            goal=GOAL,
        ),
        compared(
            f"a worker of {SERVED} empty queues",
            many,
            unit,
            against="a worker of one",
            base=one,
            goal=SAME,
        ),
    ]


def _more(taken: Sequence[float], base: Sequence[float]) -> list[float]:
    """Returns how much more was taken in each window than in that without queues."""
    return [one - other for one, other in zip(taken, base, strict=True)]


async def _served(servers: Sequence[Server], store: Store, queues: int, plan: Plan) -> list[float]:
    """Measures with a worker that serves so many queues."""
    plan.say(f"a worker of {queues} empty queues")
    worker = Worker(
        servers[0].address,
        queues=[f"empty-{number}" for number in range(queues)],
        concurrency=4,
    )

    @worker.operation(jobs.OPERATION)
    async def work(context: object) -> None:
        raise AssertionError

    async with worker:
        await asyncio.sleep(QUIET_S)
        return await _percent(servers, store, plan.size.rounds)


BENCHMARK = Benchmark(
    name="idle",
    summary="what queues cost that nobody uses",
    run=run,
    full=Size(jobs=10_000, rounds=5),
    short=Size(jobs=1_000, rounds=1),
)

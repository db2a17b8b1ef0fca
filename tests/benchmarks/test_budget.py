"""What a plain job costs, counted and not timed: commands and bytes of the store, calls in Python.

A count that goes beyond its budget fails with the names of what was called most. Where a feature
is worth it, raise the budget in the same change. Where a count has become much smaller, lower it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import redis

import jobwire
import jobwire_server
from jobwire import AsyncClient, Context, NewJob, Worker
from jobwire.v1 import job_pb2, job_service_pb2
from jobwire_server.broker.router import Router
from jobwire_server.domain.model import JobState
from jobwire_server.domain.options import Limits

from tests.support.grpc_servers import Served, served_broker
from tests.support.streams import RawWorker

pytestmark = pytest.mark.alone

JOBS = 2_000
BATCH = 100
CREDITS = 1_000
PAYLOAD = b"p" * 256
MARGIN = 1.10
"""How far a count may lie above its budget: batches do not always fall the same way."""
SERVER = str(Path(jobwire_server.__file__).parent)
SDK = str(Path(jobwire.__file__).parent)
OWN_COMMANDS = {"info", "config|resetstat", "client|setinfo", "hello", "ping"}


@dataclass
class Costs:
    """What happened meanwhile, in all."""

    commands: Counter[str] = field(default_factory=Counter)
    to_store: int = 0
    from_store: int = 0
    calls: Counter[CodeType] = field(default_factory=Counter)

    def most_called(self, package: str, jobs: int) -> str:
        """The functions of a package that were called most, with the calls of a job."""
        mine = {code: count for code, count in self.calls.items() if _of(code, package)}
        top = sorted(mine.items(), key=lambda entry: -entry[1])[:15]
        return "\n".join(
            f"  {count / jobs:8.3f}  {code.co_qualname}"
            f"  ({Path(code.co_filename).relative_to(package)}:{code.co_firstlineno})"
            for code, count in top
        )

    def called(self, package: str) -> int:
        """How many calls of the package's functions there were."""
        return sum(count for code, count in self.calls.items() if _of(code, package))


def _of(code: CodeType, package: str) -> bool:
    # The contract's generated modules and what libraries do are not in it.
    return code.co_filename.startswith(f"{package}/")


@asynccontextmanager
async def counted(store: redis.Redis) -> AsyncIterator[Costs]:
    """Counts what happens within the context, in this thread and in the store."""
    costs = Costs()
    calls = costs.calls

    def on_event(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            calls[frame.f_code] += 1

    store.config_resetstat()
    own = _net(store)  # what asking costs by itself
    before = _net(store)
    sys.setprofile(on_event)
    try:
        yield costs
    finally:
        sys.setprofile(None)
        after = _net(store)
        own = (before[0] - own[0], before[1] - own[1])
        costs.to_store = after[0] - before[0] - own[0]
        costs.from_store = after[1] - before[1] - own[1]
        for name, stats in store.info("commandstats").items():
            command = name.removeprefix("cmdstat_")
            if command not in OWN_COMMANDS:
                costs.commands[command] += stats["calls"]


def _net(store: redis.Redis) -> tuple[int, int]:
    stats = store.info("stats")
    return int(stats["total_net_input_bytes"]), int(stats["total_net_output_bytes"])


@dataclass(frozen=True)
class Budget:
    """The most of each for one job."""

    commands: float
    to_store: float
    from_store: float
    server_calls: float
    sdk_calls: float | None = None


# In batches of 100, one after the other.
SUBMIT_BATCH = Budget(commands=0.12, to_store=369, from_store=4.3, server_calls=7.8, sdk_calls=10.5)
# From the attachment of a worker with 1,000 credits to the receipt of its last completion.
WORK_STREAM = Budget(commands=3.3, to_store=116, from_store=344, server_calls=10.2, sdk_calls=9.3)
# One call after the other, so that each pays for its own way to the store.
SUBMIT_ONE = Budget(commands=12, to_store=541, from_store=24, server_calls=66)

# The same with a worker that waits on a stream: accepted, leased and sent to it.
HANDED_OVER = Budget(commands=25, to_store=785, from_store=397, server_calls=134)


def within(budget: Budget, costs: Costs, jobs: int) -> None:
    """Asserts that nothing goes beyond the budget; says what grew, and where."""
    commands = sum(costs.commands.values())
    found = {
        "store commands": (commands / jobs, budget.commands),
        "bytes to the store": (costs.to_store / jobs, budget.to_store),
        "bytes from the store": (costs.from_store / jobs, budget.from_store),
        "calls in the server": (costs.called(SERVER) / jobs, budget.server_calls),
    }
    if budget.sdk_calls is not None:
        found["calls in the SDK"] = (costs.called(SDK) / jobs, budget.sdk_calls)
    counts = "\n".join(
        f"  {'GREW: ' if count > most * MARGIN else ''}{name}: {count:.2f} a job, budget {most:g}"
        for name, (count, most) in found.items()
    )
    stats = ", ".join(f"{name} {n / jobs:.3f}" for name, n in costs.commands.most_common(12))
    report = (
        f"a job costs\n{counts}\nstore commands: {stats}\n"
        f"server:\n{costs.most_called(SERVER, jobs)}\nSDK:\n{costs.most_called(SDK, jobs)}"
    )
    assert all(count <= most * MARGIN for count, most in found.values()), report


@pytest.fixture
async def served(valkey_url: str) -> AsyncIterator[Served]:
    """A server in this process, with the limits that users have."""
    async with served_broker(valkey_url, Limits()) as found:
        yield found


async def submitted(client: AsyncClient, count: int) -> None:
    """Submits jobs in batches, one after the other."""
    for _ in range(0, count, BATCH):
        await client.submit_many([NewJob(operation="noop", payload=PAYLOAD)] * BATCH)


async def test_a_batch_of_plain_jobs_is_submitted_within_its_budget(served: Served) -> None:
    async with AsyncClient(served.address) as client:
        await submitted(client, BATCH)
        async with counted(served.broker.client) as costs:
            await submitted(client, JOBS)
    within(SUBMIT_BATCH, costs, JOBS)


async def test_plain_jobs_are_dispatched_and_completed_within_their_budget(served: Served) -> None:
    async with AsyncClient(served.address) as client:
        await submitted(client, JOBS)
    worker = Worker(served.address, concurrency=CREDITS // 2, prefetch=CREDITS // 2)
    all_handled = asyncio.Event()
    handled = 0

    @worker.operation("noop")
    async def noop(context: Context) -> bytes:
        nonlocal handled
        handled += 1
        if handled == JOBS:
            all_handled.set()
        return b"done"

    # A worker that stops waits until its completions are recorded.
    async with counted(served.broker.client) as costs, worker:
        async with asyncio.timeout(60):
            await all_handled.wait()
    assert (await served.broker.router.operators.get_queue("default")).counts == {
        JobState.SUCCEEDED: JOBS
    }
    within(WORK_STREAM, costs, JOBS)


def test_what_goes_beyond_its_budget_is_named() -> None:
    costs = Costs(commands=Counter({"hset": 30}), to_store=100, from_store=100)
    costs.calls[Router.start.__code__] = 50
    budget = Budget(commands=2, to_store=10, from_store=10, server_calls=9)
    with pytest.raises(AssertionError) as failed:
        within(budget, costs, 10)
    report = str(failed.value)
    assert "GREW: store commands: 3.00 a job, budget 2" in report
    assert "  bytes to the store: 10.00 a job, budget 10" in report
    assert "hset 3.000" in report
    assert "5.000  Router.start  (broker/router.py:" in report
    assert report.count("GREW") == 1


async def test_a_plain_job_is_submitted_by_one_call_within_its_budget(served: Served) -> None:
    request = job_service_pb2.SubmitJobRequest(
        spec=job_pb2.JobSpec(operation="noop", payload=job_pb2.Payload(data=PAYLOAD))
    )
    await served.jobs.SubmitJob(request)
    async with counted(served.broker.client) as costs:
        for _ in range(500):
            await served.jobs.SubmitJob(request)
    within(SUBMIT_ONE, costs, 500)


async def test_a_job_is_handed_over_within_its_budget(served: Served) -> None:
    request = job_service_pb2.SubmitJobRequest(
        spec=job_pb2.JobSpec(operation="noop", payload=job_pb2.Payload(data=PAYLOAD))
    )
    worker = RawWorker(served.address, operations=("noop",), credits=1_000)
    await worker.attach()
    await served.jobs.SubmitJob(request)
    await worker.jobs(1)
    async with counted(served.broker.client) as costs:
        for _ in range(300):
            await served.jobs.SubmitJob(request)
        await worker.jobs(301)
    await worker.break_off()
    assert costs.commands["evalsha"] < 300 * MARGIN
    within(HANDED_OVER, costs, 300)

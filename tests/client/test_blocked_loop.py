"""Handlers that keep the event loop, or all of Python, to themselves."""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from jobwire import AsyncClient, AttemptOutcome, Context, JobState, Worker

from tests.support.streams import QUICK, stream_server
from tests.support.workers import WorkerProcess

pytestmark = pytest.mark.processes

worker = Worker(concurrency=4)


@worker.operation("sleep.async")
async def sleep_on_the_loop(context: Context) -> str:
    """What people write by mistake."""
    time.sleep(context.payload)
    return "slept"


@worker.operation("sleep.later")
async def sleep_after_a_wait(context: Context) -> str:
    """The same, in a task of its own."""
    await asyncio.sleep(0.01)
    time.sleep(context.payload)
    return "slept"


@worker.operation("hold.thread")
def hold_python(context: Context) -> str:
    """A call into C that does not let go of Python."""
    ctypes.PyDLL(None).usleep(int(context.payload * 1e6))
    return "held"


@worker.operation("hold.async")
async def hold_python_on_the_loop(context: Context) -> str:
    """The same on the loop."""
    ctypes.PyDLL(None).usleep(int(context.payload * 1e6))
    return "held"


PATIENT = replace(QUICK, heartbeat_interval_ms=1_000, claim_timeout_ms=300)
"""Assignments are taken back long before a stream is taken for dead."""


@pytest.fixture
async def address(valkey_url: str) -> AsyncIterator[str]:
    """A server in this process."""
    async with stream_server(valkey_url, PATIENT) as server:
        yield server.address


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncClient]:
    """A client of it."""
    async with AsyncClient(address, timeout_s=30) as made:
        yield made


@pytest.fixture
def process(address: str) -> Iterator[WorkerProcess]:
    """A worker of this module in a process of its own."""
    made = WorkerProcess(address, f"{__name__}:worker", "--log-level", "debug")
    made.start()
    yield made
    made.remove()


@pytest.mark.parametrize("operation", ["sleep.async", "sleep.later", "hold.thread", "hold.async"])
async def test_handlers_that_block_for_longer_than_the_claim_timeout_run_once(
    client: AsyncClient, process: WorkerProcess, operation: str
) -> None:
    handles = [await client.submit(operation, 0.9) for _ in range(3)]
    for handle in handles:
        await handle.result(timeout=60)
        job = await handle.get()
        assert job.state is JobState.SUCCEEDED
        assert [attempt.outcome for attempt in job.attempts] == [AttemptOutcome.SUCCEEDED]


async def test_a_worker_that_makes_calls_is_spoken_for_as_well(valkey_url: str) -> None:
    hasty = replace(PATIENT, heartbeat_interval_ms=500, worker_timeout_ms=2_000)
    async with (
        stream_server(valkey_url, hasty) as server,
        AsyncClient(server.address, timeout_s=30) as client,
    ):
        process = WorkerProcess(server.address, f"{__name__}:worker", "--transport", "unary")
        process.start()
        try:
            handle = await client.submit("sleep.later", 5)
            await handle.result(timeout=60)
            job = await handle.get()
            assert [attempt.outcome for attempt in job.attempts] == [AttemptOutcome.SUCCEEDED]
        finally:
            process.remove()


async def test_a_loop_that_stands_still_keeps_its_worker_alive_and_is_named(
    client: AsyncClient, process: WorkerProcess
) -> None:
    # Longer than three heartbeats of silence, the window to attach again, and the claim timeout.
    handle = await client.submit("sleep.later", 6)
    await handle.result(timeout=60)
    job = await handle.get()
    assert [attempt.outcome for attempt in job.attempts] == [AttemptOutcome.SUCCEEDED]
    assert "the event loop has not run for 2." in process.log
    named = next(line for line in process.log.splitlines() if "has not run" in line)
    assert "'sleep.later'" in named
    assert handle.id in named
    assert "test_blocked_loop.py:" in named
    assert "(sleep_after_a_wait)" in named


async def test_python_s_lock_may_be_held_for_longer_than_a_stream_may_be_silent(
    client: AsyncClient, process: WorkerProcess
) -> None:
    # gRPC's own threads answer the server's pings meanwhile.
    handle = await client.submit("hold.thread", 5)
    await handle.result(timeout=60)
    job = await handle.get()
    assert [attempt.outcome for attempt in job.attempts] == [AttemptOutcome.SUCCEEDED]
    assert "no thread of this process has run for" in process.log

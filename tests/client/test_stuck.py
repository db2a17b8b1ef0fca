"""Handlers that do not stop, and the slots that they take."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from jobwire import AsyncClient, Context, RetryPolicy, Worker

from tests.cli.support import jobwire
from tests.support.streams import stream_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture
async def address(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A server in this process, and workers that lose patience soon."""
    monkeypatch.setattr("jobwire.worker.slots.STUCK_AFTER_S", 0.1)
    async with stream_server(valkey_url) as server:
        yield server.address


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncClient]:
    """A client of it."""
    async with AsyncClient(address, timeout_s=30) as made:
        yield made


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Lets hung handlers go."""
    made = threading.Event()
    yield made
    made.set()


def worker_of(address: str, gate: threading.Event, **options: object) -> Worker:
    worker = Worker(address, concurrency=2, shutdown_grace_s=0.1, **options)  # type: ignore[arg-type]

    @worker.operation("hang")
    def hang(context: Context) -> None:
        gate.wait(60)

    @worker.operation("ok")
    def ok(context: Context) -> int:
        return 1

    return worker


async def shown(client: AsyncClient, worker: Worker, stuck: int) -> None:
    """Wait until the broker tells of so many stuck handlers."""
    async with asyncio.timeout(30):
        while (await client.worker(worker.id)).stuck != stuck:  # noqa: ASYNC110 - the server's word
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("way", ["stream", "unary"])
async def test_a_worker_whose_places_are_all_taken_by_hung_handlers_says_so(
    address: str,
    client: AsyncClient,
    gate: threading.Event,
    way: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "jobwire.worker")
    async with worker_of(address, gate, max_abandoned=0, transport=way) as worker:
        for _ in range(2):
            await client.submit("hang", execution_timeout=0.2, retry=ONCE)

        await shown(client, worker, 2)
        assert "STUCK 2/2" in caplog.text
        assert "test_stuck.py:" in caplog.text
        listed = await asyncio.to_thread(jobwire, "workers", target=address)
        assert "STUCK 2/2" in listed.stdout
        waiting = await client.submit("ok")
        gate.set()
        assert await waiting.result(timeout=30) == 1
        await shown(client, worker, 0)


async def test_hung_handlers_give_their_slots_to_others_within_a_bound(
    address: str, client: AsyncClient, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jobwire.worker")
    async with worker_of(address, gate) as worker:
        for _ in range(2):
            await client.submit("hang", execution_timeout=0.2, retry=ONCE)
        await eventually(lambda: caplog.text.count("is left alone") == 2, "they are let go")
        for _ in range(5):
            assert await (await client.submit("ok")).result(timeout=30) == 1
        # The bound is their number again; then slots stay taken.
        for _ in range(2):
            await client.submit("hang", execution_timeout=0.2, retry=ONCE)
        await eventually(lambda: "STUCK 2/2" in caplog.text, "no more are let go")
        await eventually(lambda: worker.stats.running == 0, "the server has ended their jobs")
        gate.set()
        await eventually(
            lambda: caplog.text.count("the abandoned handler") == 2, "they end after all"
        )
        assert await (await client.submit("ok")).result(timeout=30) == 1

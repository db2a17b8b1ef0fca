"""More than a server can take: it answers or refuses every call in time, and goes on."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from jobwire.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc

from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess, wait_until
from tests.support.waiting import eventually

pytestmark = pytest.mark.alone

StartServer = Callable[..., ServerProcess]

CONNECTIONS = 8
PATIENCE_S = 60.0
"""The deadline of each call: far longer than an answer should take, on a machine that is busy."""
MIB = 1 << 20


class Flood:
    """Callers that submit all at once. Use it as a context manager."""

    def __init__(self, address: str, deadline_s: float = PATIENCE_S) -> None:
        self._address = address
        self._deadline_s = deadline_s
        self._stack = AsyncExitStack()
        self.ends = Counter[str]()
        """How the calls of the last flood ended so far."""
        self._stubs: list[job_service_pb2_grpc.JobServiceAsyncStub] = []

    async def __aenter__(self) -> Flood:
        for _ in range(CONNECTIONS):
            options = (("grpc.use_local_subchannel_pool", 1),)
            channel = grpc.aio.insecure_channel(self._address, options=options)
            await self._stack.enter_async_context(channel)
            self._stubs.append(job_service_pb2_grpc.JobServiceStub(channel))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def submit(self, calls: int, size: int) -> Counter[str]:
        """Submits jobs with so many bytes each; returns how the calls ended."""
        payload = job_pb2.Payload(data=b"x" * size)
        request = job_service_pb2.SubmitJobRequest(
            spec=job_pb2.JobSpec(operation="nobody", payload=payload)
        )
        return await self._make("SubmitJob", request, calls)

    async def submit_batches(self, calls: int, jobs: int) -> Counter[str]:
        """Submits batches of so many jobs; returns how the calls ended."""
        request = job_service_pb2.SubmitJobRequest(spec=job_pb2.JobSpec(operation="nobody"))
        batch = job_service_pb2.SubmitJobsRequest(requests=[request] * jobs)
        return await self._make("SubmitJobs", batch, calls)

    async def _make(self, method: str, request: Any, calls: int) -> Counter[str]:
        self.ends = ends = Counter[str]()

        async def one(number: int) -> None:
            call = getattr(self._stubs[number % CONNECTIONS], method)
            try:
                await call(request, timeout=self._deadline_s)
                ends["accepted"] += 1
            except grpc.aio.AioRpcError as error:
                ends[_end(error)] += 1

        await asyncio.gather(*(one(number) for number in range(calls)))
        return ends


def _end(error: grpc.aio.AioRpcError) -> str:
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return f"{error.code().name}: {error.details()}"
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            status.ParseFromString(value)
    retry = error_details_pb2.RetryInfo()
    (found,) = (each for each in status.details if each.Unpack(retry))
    assert found.ByteSize() > 0
    return "refused" if retry.retry_delay.ToMilliseconds() > 0 else "refused without a delay"


def _rss(server: ServerProcess) -> float:
    return server.metric("process_resident_memory_bytes")


def _in_hand(server: ServerProcess) -> float:
    return server.metric('jobwire_rpc_in_flight{method="/jobwire.v1.JobService/SubmitJob"}')


def _submitted(store: StoreProcess) -> int:
    with store.client() as client:
        return int(client.hget("jw:{default}:totals", "submitted"))


async def test_a_burst_is_answered_call_by_call_and_none_is_cut_off(
    tmp_path: Path, start_server: StartServer
) -> None:
    server = start_server(data_dir=tmp_path)
    async with Flood(server.address) as flood:
        assert await flood.submit(2_000, 100) == {"accepted": 2_000}


async def test_what_exceeds_the_limits_is_refused_with_a_delay_and_work_goes_on(
    own_store: StoreProcess, start_server: StartServer
) -> None:
    server = start_server("--redis-url", own_store.url, "--max-queued-requests", "50")
    async with Flood(server.address) as flood:
        assert await flood.submit(1, 100) == {"accepted": 1}
        own_store.pause()
        flooding = asyncio.create_task(flood.submit(1_000, 100))
        # All others have their answer while the store has given none.
        await eventually(lambda: flood.ends["refused"] == 950, "the rest is refused")
        own_store.resume()
        assert await flooding == {"accepted": 50, "refused": 950}
        assert await flood.submit(20, 100) == {"accepted": 20}
    assert _submitted(own_store) == 71


async def test_a_batch_that_exceeds_the_limits_is_refused_as_a_whole_with_a_delay(
    own_store: StoreProcess, start_server: StartServer
) -> None:
    server = start_server("--redis-url", own_store.url, "--max-queued-requests", "50")
    async with Flood(server.address) as flood:
        assert await flood.submit(1, 100) == {"accepted": 1}
        own_store.pause()
        flooding = asyncio.create_task(flood.submit_batches(10, 20))
        await eventually(lambda: flood.ends["refused"] == 8, "the rest is refused")
        own_store.resume()
        assert await flooding == {"accepted": 2, "refused": 8}
        assert await flood.submit_batches(2, 20) == {"accepted": 2}
    assert _submitted(own_store) == 81


async def test_calls_that_nobody_looks_at_for_two_seconds_are_turned_away(tmp_path: Path) -> None:
    folder = str(Path(__file__).parent / "stuck_loop")
    server = ServerProcess(data_dir=tmp_path, env={"PYTHONPATH": folder})
    try:
        server.start()
        async with Flood(server.address) as flood:
            assert await flood.submit(8, 100) == {"accepted": 8}
            server.signal(signal.SIGUSR1)
            await eventually(lambda: "the loop is stuck" in server.log, "the loop is stuck")
            ends = await flood.submit(50, 100)
            # The one that the server asked for before is its own.
            assert ends == {"accepted": 1, "CANCELLED: CANCELLED": 49}
            assert await flood.submit(8, 100) == {"accepted": 8}
    finally:
        server.stop()


async def test_large_payloads_are_bounded_by_their_bytes_and_so_is_the_memory(
    tmp_path: Path, start_server: StartServer
) -> None:
    server = start_server("--max-queued-bytes", "16MiB", data_dir=tmp_path)
    async with Flood(server.address) as flood:
        ends = await flood.submit(400, MIB // 2)
        assert set(ends) == {"accepted", "refused"}
        after_one = await asyncio.to_thread(_rss, server)
        for _ in range(2):
            ends += await flood.submit(400, MIB // 2)
        assert set(ends) == {"accepted", "refused"}
        # Two hundred MiB come in each time; nothing of them may stay.
        assert await asyncio.to_thread(_rss, server) < after_one + 200 * MIB
        assert await flood.submit(20, 100) == {"accepted": 20}


async def test_what_is_too_late_is_dropped_before_it_reaches_the_store(
    own_store: StoreProcess, start_server: StartServer
) -> None:
    server = start_server("--redis-url", own_store.url)
    async with Flood(server.address) as patient, Flood(server.address, 0.3) as hasty:
        assert await patient.submit(1, 100) == {"accepted": 1}
        own_store.pause()
        first = asyncio.create_task(patient.submit(1, 100))
        await asyncio.to_thread(wait_until, lambda: _in_hand(server) == 1, "it is at the store")
        assert set(await hasty.submit(500, 100)) == {"DEADLINE_EXCEEDED: Deadline Exceeded"}
        await asyncio.to_thread(wait_until, lambda: _in_hand(server) == 1, "they are dropped")
        own_store.resume()
        assert await first == {"accepted": 1}
        assert await patient.submit(1, 100) == {"accepted": 1}
    assert _submitted(own_store) == 3

"""A watcher that does not read costs the server next to nothing, however much is written."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobwire.v1 import job_pb2, job_service_pb2

from tests.support.grpc_servers import refusal, refused
from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess
from tests.watch.support import SUCCEEDED, Hands, chunk

pytestmark = pytest.mark.processes

MIB = 1 << 20
WRITTEN = 100 * MIB
JOBS = 4
LIMIT = 8 * MIB
GROWTH = 40 * MIB
"""What a server may grow by meanwhile: calls of a MiB are taken apart and passed on in it."""


def _resident(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


async def _read(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def _first_kept(hands: Hands, job_id: str, cursor: str) -> str:
    """Returns where the output that is kept begins, as far as anybody who was there can tell."""
    request = job_service_pb2.WatchJobRequest(job_id=job_id, cursor=cursor)
    call = hands.jobs.WatchJob(request)
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        said = refused(error)
        assert said.reason == "CURSOR_COMPACTED"
        return said.metadata["first_available"]
    call.cancel()
    return cursor


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc tells the memory")
async def test_memory_stays_flat_for_watchers_that_never_read_while_100_mb_are_written(
    valkey: StoreProcess,
) -> None:
    valkey.flush()
    server = ServerProcess("--redis-url", valkey.url)
    server.start()
    try:
        async with Hands(server.address) as hands, Hands(server.address) as idle:
            await hands.register()
            policy = job_pb2.OutputPolicy(max_bytes=LIMIT, overflow=job_pb2.OUTPUT_OVERFLOW_TRIM)
            leases = [await hands.running(output=policy) for _ in range(JOBS)]
            block = [chunk(b"x" * (64 << 10), at << 16) for at in range(16)]
            # Once around first, so that what a server needs anyhow does not count.
            for lease in leases:
                await hands.write(lease, *block)
            calls = []
            for lease in leases:
                for _ in range(5):
                    call = idle.jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=lease.job_id))
                    first = await call.read()
                    assert first.HasField("job")
                    calls.append(call)
            assert server.process is not None
            pid = server.process.pid
            before = _resident(pid)
            offset = MIB
            while offset * JOBS < WRITTEN:
                for lease in leases:
                    moved = [chunk(one.data, offset + one.offset) for one in block]
                    await hands.write(lease, *moved)
                offset += MIB
            grown = _resident(pid) - before
            assert grown < GROWTH, f"{grown / MIB:.1f} MiB for {WRITTEN / MIB:.0f} written"
            for lease in leases:
                await hands.complete(lease)
            # Those who did not read are told what they have missed, and the rest is there.
            said = await refusal(_read(calls[0]))
            assert said.reason == "CURSOR_COMPACTED"
            # What was the first then may have gone since.
            cursor = await _first_kept(hands, leases[0].job_id, said.metadata["first_available"])
            account = await hands.watch(leases[0].job_id, cursor=cursor).end()
            assert account.states == [SUCCEEDED]
            assert account.output == {1: b"x" * LIMIT}
            for call in calls:
                call.cancel()
    finally:
        server.stop()

"""The soak of streams, small enough for every run, and the inside of the server after it."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import pytest

from jobwire_server.workers import dispatcher

from tests.soak.streams import batch, running_server, soak
from tests.support.streams import Producer, RawWorker, stream_server
from tests.support.waiting import eventually

STREAMS = int(os.environ.get("JOBWIRE_TEST_SOAK", "600"))
"""A multiple of 200; `make test SOAK=20000` for more."""

# So few fill the machine for a few seconds only.
pytestmark = [pytest.mark.alone] if STREAMS > 600 else []


@pytest.mark.timeout(120 + STREAMS / 10)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
async def test_hundreds_of_broken_streams_leave_nothing_in_the_server() -> None:
    with running_server() as server:
        figures = await soak(server, [STREAMS // 2, STREAMS], kills_every=4)
        assert figures.in_flight == 0
        assert figures.defects == 0, server.log
    # A stream that stayed would cost some 50 KiB: 15 MiB for the latter half of 600.
    assert figures.memory_mib[STREAMS] - figures.memory_mib[STREAMS // 2] < 8


@pytest.mark.alone
async def test_streams_broken_in_every_way_leave_no_task_and_no_session(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "LINGER_S", 0.5)
    async with stream_server(valkey_url) as server, Producer(server.address) as producer:
        await producer.submit(50)
        # What there is once and for all, is there after this.
        async with RawWorker(server.address, credits=0) as worker:
            await worker.attach()
            await worker.leave()
        await batch(server.address, 0, 50)
        parts = server.parts

        def nothing_is_left() -> bool:
            gc.collect()
            names = [task.get_name() for task in asyncio.all_tasks()]
            tasks = [name for name in names if name.startswith(("Handle", "work-", "session-"))]
            return not (tasks or parts.sessions or parts.streams.settling or parts.stream_tasks)

        await eventually(nothing_is_left, "the first streams are over", timeout_s=60)
        before = len(asyncio.all_tasks())
        await batch(server.address, 50, 250)
        await eventually(nothing_is_left, "the streams are over", timeout_s=60)
        await eventually(lambda: len(asyncio.all_tasks()) <= before, "no task is left")
        assert not parts.signals.sessions
        await eventually(
            lambda: not [t for t in asyncio.all_tasks() if t.get_name().startswith("dispatch-")],
            "no demand keeps a dispatcher",
            timeout_s=60,
        )
        # Workers that are gone are known to nobody.
        assert not len(server.parts.known)

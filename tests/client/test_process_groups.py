"""What handlers in processes start: it works, and it ends with them."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence

import pytest

from jobwire import ProcessOptions, from_payload, to_payload
from jobwire.v1 import job_pb2
from jobwire.worker.processes import pool

from tests.client import process_handlers as handlers
from tests.client.broker import Broker
from tests.client.support import cancel, completion, process_worker, result, started
from tests.support.processes import lives
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes


async def gone(pids: Sequence[int]) -> None:
    """Wait until no process of these runs."""
    await eventually(
        lambda: not any(lives(pid) for pid in pids), f"the processes {pids} are gone", timeout_s=20
    )


async def started_programs(broker: Broker, *scripts: str) -> tuple[job_pb2.Job, list[int]]:
    """A job whose handler has started programs, and their ids, its process's first."""
    job = await broker.add("start_and_wait", to_payload(list(scripts)))
    await started(broker, job)
    pids = from_payload(job.progress.details)
    assert all(lives(pid) for pid in pids)
    return job, pids


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
async def test_pools_work_within_handlers(broker: Broker, method: str) -> None:
    async with process_worker(broker, handlers.use_pool, handlers.use_executor):
        assert await result(broker, "use_pool", method) == [0, 1, 4, 9]
        assert await result(broker, "use_executor", method) == [0, 1, 4, 9]


async def test_programs_find_signals_and_descriptors_as_they_expect_them(broker: Broker) -> None:
    # As under nohup, or as a background job of a script.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        async with process_worker(broker, handlers.state_of_programs):
            state = await result(broker, "state_of_programs")
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    # 32 and 33 are the C library's own, which nobody can set.
    theirs = ~(0b11 << 31)
    assert (state["ignored"] & theirs, state["blocked"] & theirs) == (0, 0)
    assert state["descriptors"] == ["0", "1", "2", "3"]  # the last is of the directory itself
    assert state["stdin"] == os.devnull
    assert state["ends"] == [-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP]


async def test_what_does_not_stop_is_ended_with_its_group(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "KILL_AFTER_S", 1.2)
    async with process_worker(broker, handlers.start_and_wait, handlers.own_pid):
        job, pids = await started_programs(broker, handlers.SLEEP, handlers.STUBBORN)
        await cancel(broker, job)
        assert (await completion(broker, job)).HasField("cancelled")
        await gone(pids)
        assert await result(broker, "own_pid") not in pids


async def test_a_lost_lease_ends_the_group(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "KILL_AFTER_S", 1.2)
    async with process_worker(broker, handlers.start_and_wait):
        job, pids = await started_programs(broker, handlers.SLEEP)
        broker.lost.add(job.job_id)
        await gone(pids)


async def test_the_end_of_the_worker_ends_the_groups(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "KILL_AFTER_S", 1.2)
    async with process_worker(broker, handlers.start_and_wait, grace_s=0.1):
        job, pids = await started_programs(broker, handlers.SLEEP, handlers.STUBBORN)
    assert not any(lives(pid) for pid in pids)
    assert (await completion(broker, job)).HasField("released")


async def test_the_death_of_a_handlers_process_ends_its_programs(broker: Broker) -> None:
    async with process_worker(broker, handlers.start_and_wait):
        job, pids = await started_programs(broker, handlers.SLEEP, handlers.STUBBORN)
        os.kill(pids[0], signal.SIGKILL)
        assert (await completion(broker, job)).failure.type == "ProcessDied"
        assert not any(lives(pid) for pid in pids)


async def test_what_a_job_leaves_running_is_named_and_ended(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async with process_worker(broker, handlers.leave_running):
        with caplog.at_level(logging.WARNING):
            pids = await result(broker, "leave_running", handlers.STUBBORN)
        await gone(pids)
        words = next(record.message for record in caplog.records if "left" in record.message)
        assert all(f"({pid})" in words for pid in pids[1:])
        assert (await result(broker, "leave_running", "exit 0"))[0] != pids[0]


async def test_what_a_job_leaves_running_goes_on_if_asked(broker: Broker) -> None:
    options = ProcessOptions(end_children=False)
    async with process_worker(broker, handlers.leave_running, options=options):
        pids = await result(broker, "leave_running", handlers.SLEEP)
        others = await result(broker, "leave_running", handlers.SLEEP)
        assert others[0] == pids[0]
        assert all(lives(pid) for pid in pids)
    assert not any(lives(pid) for pid in [*pids, *others])


async def test_what_multiprocessing_keeps_for_itself_costs_no_process(broker: Broker) -> None:
    async with process_worker(broker, handlers.leave_tracker):
        first = await result(broker, "leave_tracker")
        assert await result(broker, "leave_tracker") == first

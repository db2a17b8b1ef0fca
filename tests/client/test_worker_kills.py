"""A worker whose process is signalled or killed, and what its handlers' processes make of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from jobwire import from_payload, to_payload
from jobwire.worker.processes.groups import processes

from tests.client import process_handlers as handlers
from tests.client.broker import Broker
from tests.client.support import completion, started
from tests.support.processes import lives
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from jobwire import Worker
from tests.client import process_handlers as handlers

worker = Worker(sys.argv[1], concurrency=2, shutdown_grace_s=0.2)
worker.operation("start_and_wait", run="process")(handlers.start_and_wait)
worker.operation("touch_and_wait", run="process")(handlers.touch_and_wait)
worker.operation("fork_a_pool")(handlers.fork_a_pool)
worker.operation("leave_from_thread")(handlers.leave_from_thread)
worker.run()
"""


@asynccontextmanager
async def worker_program(
    broker: Broker, log: Path | None = None
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own, which leads a group as if a terminal had started it."""
    with nullcontext() if log is None else log.open("wb") as errors:
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, broker.target], start_new_session=True, stderr=errors
        )
    try:
        yield program
    finally:
        children = {one.pid for one in processes() if one.parent == program.pid}
        program.kill()
        program.wait()
        await eventually(
            lambda: not any(map(lives, children)), "its children are gone", timeout_s=30
        )


async def programs_of(broker: Broker) -> list[int]:
    """The processes of a job that has started some, the handler's first."""
    job = await broker.add("start_and_wait", to_payload([handlers.SLEEP, handlers.STUBBORN]))
    await started(broker, job)
    pids: list[int] = from_payload(job.progress.details)
    assert all(lives(pid) for pid in pids)
    return pids


@pytest.mark.parametrize("stopped", [False, True], ids=["", "whose handler is stopped"])
async def test_the_kill_of_a_worker_ends_the_groups_of_its_handlers(
    broker: Broker, stopped: bool
) -> None:
    async with worker_program(broker) as program:
        pids = await programs_of(broker)
        if stopped:
            # As little as a handler that holds the interpreter's lock it sees that nobody is there.
            os.kill(pids[0], signal.SIGSTOP)
        program.kill()
        await eventually(lambda: not any(map(lives, pids)), "all have ended", timeout_s=30)


async def test_a_forked_child_of_the_worker_hides_its_kill_from_nobody(broker: Broker) -> None:
    """Pools in handlers of other modes are forked from the worker, with its descriptors."""
    async with worker_program(broker) as program:
        pids = await programs_of(broker)
        job = await broker.add("fork_a_pool")
        await started(broker, job)
        forked = from_payload(job.progress.details)
        try:
            program.kill()
            await eventually(lambda: not any(map(lives, pids)), "all have ended", timeout_s=30)
        finally:
            for pid in forked:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


async def test_a_worker_names_what_other_handlers_have_left_running(
    broker: Broker, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with worker_program(broker, log) as program:
        said = await completion(broker, await broker.add("leave_from_thread"))
        pid = int(said.success.result.json)
        try:
            program.terminate()
            await eventually(
                lambda: program.poll() is not None, "the worker has left", timeout_s=30
            )
            assert f"handlers left processes running: sleep ({pid})" in (log.read_text())
        finally:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_to_the_workers_group_leaves_its_handlers_their_time(
    broker: Broker, tmp_path: Path, number: signal.Signals
) -> None:
    async with worker_program(broker) as program:
        job = await broker.add("touch_and_wait", to_payload(str(tmp_path / "begun")))
        await eventually((tmp_path / "begun").exists, "the handler has begun", timeout_s=30)
        # As a terminal does; a service manager sends it to every process of the service.
        for one in processes():
            if one.parent == program.pid:
                os.kill(one.pid, number)
        os.killpg(program.pid, number)
        assert (await completion(broker, job)).success.result.json == '"heeded"'
        await eventually(lambda: program.poll() is not None, "the worker has left", timeout_s=30)
        assert program.returncode == 0


async def test_the_kill_of_the_keeper_is_made_good(broker: Broker) -> None:
    async with worker_program(broker) as program:
        first = await programs_of(broker)
        keeper = await keeper_of(program)
        os.kill(keeper, signal.SIGKILL)
        await eventually(lambda: not lives(keeper), "the keeper has ended", timeout_s=30)
        second = await programs_of(broker)
        assert await keeper_of(program) != keeper
        os.kill(first[0], signal.SIGSTOP)
        os.kill(second[0], signal.SIGSTOP)
        program.kill()
        await eventually(
            lambda: not any(map(lives, [*first, *second])), "all have ended", timeout_s=30
        )


async def keeper_of(program: subprocess.Popen[bytes]) -> int:
    """The process that ends groups in the worker's place."""

    def found() -> list[int]:
        return [
            one.pid
            for one in processes()
            if one.parent == program.pid
            and not one.is_zombie
            and b"keeper.py" in Path(f"/proc/{one.pid}/cmdline").read_bytes()
        ]

    await eventually(lambda: bool(found()), "there is a keeper", timeout_s=30)
    return found()[0]

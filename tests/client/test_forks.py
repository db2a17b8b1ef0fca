"""Children of handlers: pools, forks and programs, and what must not become of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobwire import AsyncClient, Context, Worker

from tests.support.streams import stream_server
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess

pytestmark = pytest.mark.processes

worker = Worker(concurrency=4)


def square(number: int) -> int:
    """What the children work out."""
    return number * number


def in_pool(method: str | None) -> int:
    """Squares in a pool of the standard library."""
    with multiprocessing.get_context(method).Pool(2) as pool:
        return sum(pool.map(square, range(10)))


def in_executor(method: str | None) -> int:
    """Squares in its other one."""
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        return sum(pool.map(square, range(10)))


def in_forks(_: object) -> int:
    """Fork many times; each child ends at once."""
    for _ in range(30):
        child = os.fork()
        if not child:
            os._exit(7)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == 7, f"a child ended with {code}"
    return 285


def in_program(_: object) -> int:
    """Run a program."""
    done = subprocess.run([sys.executable, "-c", "print(285)"], capture_output=True, check=True)
    return int(done.stdout)


WAYS: dict[str, Callable[[Any], int]] = {
    "pool": in_pool,
    "executor": in_executor,
    "forks": in_forks,
    "program": in_program,
}


@worker.operation("thread")
def in_thread(context: Context) -> int:
    """A plain handler."""
    way, method = context.payload
    return WAYS[way](method)


@worker.operation("async")
async def on_loop(context: Context) -> int:
    """What blocks the loop meanwhile."""
    way, method = context.payload
    return WAYS[way](method)


@worker.operation("returns")
def child_returns(context: Context) -> list[int]:
    """Fork children that come back from the handler."""
    codes = []
    for raises in (False, True):
        child = os.fork()
        if not child:
            if raises:
                raise ValueError("in the child")
            return []
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return codes


@worker.operation("awaits")
async def child_awaits(context: Context) -> int:
    """Fork a child that goes on with the worker's loop."""
    child = os.fork()
    if not child:
        await asyncio.sleep(0)
        raise AssertionError("a second worker")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
async def address(valkey_url: str) -> AsyncIterator[str]:
    """A server in this process."""
    async with stream_server(valkey_url) as server:
        yield server.address


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncClient]:
    """A client of it."""
    async with AsyncClient(address, timeout_s=60) as made:
        yield made


@pytest.fixture(params=["uvloop", "asyncio"])
def process(
    request: pytest.FixtureRequest,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[WorkerProcess]:
    """A worker of this module, on either loop."""
    if request.param == "asyncio":
        (tmp_path / "uvloop.py").write_text("raise ImportError")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = WorkerProcess(address, f"{__name__}:worker")
    made.start()
    yield made
    made.remove()


async def test_handlers_may_have_children_of_every_kind(
    client: AsyncClient, process: WorkerProcess
) -> None:
    ways: list[tuple[str, str | None]] = [
        *[(way, method) for way in ("pool", "executor") for method in (None, "fork")],
        *[("forks", None), ("program", None)],
    ]
    for operation in ("thread", "async"):
        for way in ways:
            handle = await client.submit(operation, way)
            assert await handle.result(timeout=120) == 285, (operation, way)
    assert "told to stop" not in process.log
    assert process.stop() == 0


async def test_a_pool_that_starts_afresh_works_in_a_handler(
    address: str, client: AsyncClient
) -> None:
    process = WorkerProcess(address, f"{__name__}:worker")
    process.start()
    try:
        handle = await client.submit("thread", ("pool", "spawn"))
        assert await handle.result(timeout=100) == 285
    finally:
        process.remove()


async def test_a_child_that_comes_back_from_its_handler_is_ended(
    client: AsyncClient, process: WorkerProcess
) -> None:
    assert await (await client.submit("returns")).result(timeout=60) == [0, 1]
    assert await (await client.submit("awaits")).result(timeout=60) == 0
    assert "ValueError: in the child" in process.log
    assert "os._exit" in process.log
    workers = [found async for found in client.workers()]
    assert len(workers) == 1


async def test_a_fork_under_grpc_s_threads_is_told_of_with_the_remedy(
    address: str, client: AsyncClient, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os\n"
        "from jobwire import Worker\n"
        f"worker = Worker({address!r})\n"
        "@worker.operation('fork')\n"
        "def fork(context):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "    return multiprocessing.get_start_method()\n"
        "if __name__ == '__main__':\n"
        "    worker.run()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, env=environment)
    try:
        assert await (await client.submit("fork")).result(timeout=60) == "forkserver"
        await eventually(lambda: process.poll() is None, "it lives")
    finally:
        process.terminate()
        _, said = await asyncio.to_thread(process.communicate)
    assert b"GRPC_ENABLE_FORK_SUPPORT=false" in said

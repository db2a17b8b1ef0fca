"""A worker's end, from wherever it is asked for."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from jobwire import Context, Worker, to_payload
from jobwire.v1 import job_pb2

from tests.client.broker import Broker
from tests.client.support import completion, started, waiting_for, worker_of
from tests.support.waiting import eventually

IN_A_THREAD = """
import asyncio, logging, sys, threading
from jobwire import Client, Worker

logging.basicConfig(level=logging.INFO)
worker = Worker(sys.argv[1])
ran = threading.Event()

@worker.operation("ok")
def ok(context):
    ran.set()

for way in ("wait", "await"):
    thread = threading.Thread(target=worker.run, name="apart")
    thread.start()
    ran.clear()
    with Client(sys.argv[1], timeout_s=30) as client:
        client.submit("ok").result(timeout=30)
    assert ran.is_set()
    if way == "wait":
        assert worker.stop().wait(30)
    else:
        async def main():
            await worker.stop()
        asyncio.run(main())
    thread.join(30)
    assert not thread.is_alive()
    with Client(sys.argv[1], timeout_s=30) as client:
        assert list(client.workers()) == []
"""


def test_stop_ends_a_worker_that_runs_in_another_thread(broker_address: str) -> None:
    # In a process of its own: gRPC's asyncio is for one loop at a time.
    done = subprocess.run(
        [sys.executable, "-c", IN_A_THREAD, broker_address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "runs in the thread 'apart', where no signals arrive: end it with worker.stop()" in (
        done.stderr
    )


async def test_stop_ends_a_worker_that_finds_no_server(broker: Broker) -> None:
    await broker.stop()
    worker = worker_of(broker, ok=lambda context: 1)
    serving = asyncio.create_task(worker.serve())
    await eventually(lambda: worker.stop().wait(0) is False, "it is on its way")
    async with asyncio.timeout(20):
        await asyncio.gather(serving, worker.stop())
    starting = asyncio.create_task(worker.start())
    await asyncio.sleep(0)
    await worker.stop()
    with pytest.raises(RuntimeError, match="stopped before it had started"):
        await starting


async def test_stop_does_nothing_before_the_start_after_the_end_and_a_second_time(
    broker: Broker,
) -> None:
    worker = worker_of(broker, ok=lambda context: 1)
    await worker.stop()
    assert worker.stop().wait(0)
    serving = asyncio.create_task(worker.serve())
    await broker.until(lambda: broker.calls["ClaimJob"])
    first, second = worker.stop(), worker.stop()
    async with asyncio.timeout(20):
        await asyncio.gather(first, second, serving)
    await worker.stop()
    assert len(broker.calls["DeregisterWorker"]) == 1
    async with worker:  # and it may be used again
        assert len(broker.calls["RegisterWorker"]) == 2


async def test_stop_in_a_signal_handler_ends_a_started_worker(broker: Broker) -> None:
    worker = worker_of(broker, ok=lambda context: 1)
    await worker.start()
    former = signal.signal(signal.SIGUSR1, lambda *_: worker.stop())
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        await broker.until(lambda: not broker.workers)
    finally:
        signal.signal(signal.SIGUSR1, former)
    await worker.stop()


class WithoutSignals(asyncio.SelectorEventLoop):
    """A loop as on Windows."""

    def add_signal_handler(self, *_: Any) -> None:
        raise NotImplementedError

    def remove_signal_handler(self, *_: Any) -> bool:
        raise NotImplementedError


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_loop_without_signal_handlers_is_ended_by_a_signal_all_the_same(number: int) -> None:
    async def main() -> None:
        broker = Broker()  # type: ignore[abstract]  # what it lacks is UNIMPLEMENTED
        await broker.start()
        worker = worker_of(broker, ok=lambda context: 1)
        serving = asyncio.create_task(worker.serve())
        await broker.until(lambda: broker.calls["ClaimJob"])
        os.kill(os.getpid(), number)
        async with asyncio.timeout(20):
            await serving
        assert broker.workers == {}
        await broker.stop()

    former = signal.getsignal(number)
    with asyncio.Runner(loop_factory=WithoutSignals) as runner:
        runner.run(main())
    assert signal.getsignal(number) is former


@pytest.mark.parametrize(
    "kind", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, BaseException]
)
@pytest.mark.parametrize("mode", ["async", "waiting", "thread", "returned"])
async def test_whatever_a_handler_raises_is_its_job_s_failure(
    broker: Broker, kind: type[BaseException], mode: str
) -> None:
    def thread(context: Context) -> None:
        raise kind("mine")

    async def now(context: Context) -> None:
        raise kind("mine")

    async def waiting(context: Context) -> None:
        await asyncio.sleep(0.001)
        raise kind("mine")

    handler = {
        "async": now,
        "waiting": waiting,
        "thread": thread,
        "returned": lambda context: waiting(context),
    }[mode]
    worker = worker_of(broker, bad=handler, ok=lambda context: 1)
    serving = asyncio.create_task(worker.serve())
    bad = await broker.add("bad")
    said = await completion(broker, bad)
    assert said.HasField("failure")
    assert not serving.done()
    other = await broker.add("ok")
    assert (await completion(broker, other)).HasField("success")
    await worker.stop()
    await serving


def plain(function: Callable[[Context], Any]) -> Callable[[Context], Any]:
    """A decorator that knows nothing of async functions."""

    @functools.wraps(function)
    def call(context: Context) -> Any:
        return function(context)

    return call


async def test_an_async_function_behind_a_plain_decorator_is_awaited(broker: Broker) -> None:
    @plain
    async def add(context: Context) -> int:
        await asyncio.sleep(0.001)
        context.progress(1.0)
        return sum(context.payload)

    async with worker_of(broker, add=add):
        job = await broker.add("add", to_payload([1, 2, 3]))
        await completion(broker, job)
    assert job.result.json == "6"


async def test_what_a_plain_decorator_hides_is_cancelled_at_its_await(broker: Broker) -> None:
    worker = worker_of(broker, wait=plain(waiting_for(asyncio.Event())))
    worker.shutdown_grace_s = 0
    await worker.start()
    job = await broker.add("wait")
    await started(broker, job)
    await worker.stop()
    (call,) = broker.calls["CompleteJob"]
    assert call.completion.HasField("released")
    assert job.state == job_pb2.JOB_STATE_PENDING


def test_generators_are_refused_with_what_to_write_instead() -> None:
    def pieces(context: Context) -> Iterator[int]:
        yield 1

    async def async_pieces(context: Context) -> AsyncIterator[int]:
        yield 1

    class Called:
        def __call__(self, context: Context) -> Iterator[int]:
            yield 1

    for handler in (pieces, async_pieces, Called(), functools.partial(pieces)):
        with pytest.raises(TypeError, match=r"generator .* context\.output"):
            Worker().operation("x")(handler)

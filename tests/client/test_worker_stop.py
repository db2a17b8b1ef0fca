"""How a worker leaves: drain, grace, what it gives back."""

from __future__ import annotations

import asyncio
import threading

import pytest

from jobwire import Context
from jobwire.v1 import job_pb2

from tests.client.broker import Broker
from tests.client.support import started, waiting_for, worker_of


async def test_stopping_lets_running_jobs_finish_and_takes_no_new_ones(broker: Broker) -> None:
    gate = asyncio.Event()
    worker = worker_of(broker, wait=waiting_for(gate))
    await worker.start()
    job = await broker.add("wait")
    await started(broker, job)
    stopping = asyncio.create_task(worker.stop())
    await broker.until(lambda: broker.calls["UpdateWorkerStatus"])
    other = await broker.add("wait")
    gate.set()
    await stopping
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED
    assert other.state == job_pb2.JOB_STATE_PENDING
    assert broker.workers == {}


async def test_what_does_not_finish_in_the_grace_is_released_as_interrupted(
    broker: Broker,
) -> None:
    worker = worker_of(broker, sleep=waiting_for(asyncio.Event()))
    worker.shutdown_grace_s = 0.05
    await worker.start()
    job = await broker.add("sleep")
    await started(broker, job)
    await worker.stop()
    (call,) = broker.calls["CompleteJob"]
    assert call.completion.HasField("released")
    assert not call.completion.released.not_started


async def test_a_thread_that_does_not_stop_is_given_back_all_the_same(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobwire.worker.core.UNWIND_S", 0.05)
    release = threading.Event()

    def stubborn(context: Context) -> None:
        context.progress(None, "started")
        release.wait(60)

    worker = worker_of(broker, stubborn=stubborn)
    worker.shutdown_grace_s = 0.05
    await worker.start()
    job = await broker.add("stubborn")
    await started(broker, job)
    await worker.stop()
    release.set()
    (call,) = broker.calls["CompleteJob"]
    assert call.completion.HasField("released")


async def test_the_broker_may_ask_for_the_drain(broker: Broker) -> None:
    broker.drain = True
    async with asyncio.timeout(10):
        await worker_of(broker, ok=lambda context: 1).serve()
    assert len(broker.calls["DeregisterWorker"]) == 1

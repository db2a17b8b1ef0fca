"""What a dead process sent reaches the store late, and disturbs nobody who has its id by then."""

from __future__ import annotations

import asyncio
from typing import Any, Literal
from urllib.parse import urlsplit

import grpc
import pytest

from jobwire.v1.worker_service_pb2 import Attach, RegisterWorkerRequest, WorkerSpec, WorkRequest
from jobwire.v1.worker_service_pb2_grpc import WorkerServiceStub
from jobwire_server.domain.model import WorkerStatus

from tests.support.proxy import Proxy
from tests.support.streams import Producer, RawWorker, stream_server
from tests.support.waiting import eventually
from tests.workers.test_reconnect import PATIENT

SPEC = WorkerSpec(worker_id="w1", queues=["default"], operations=["work"])
Way = Literal["Work", "RegisterWorker"]
ways = pytest.mark.parametrize("way", ["Work", "RegisterWorker"])


async def _send(stub: Any, way: Way) -> Any:
    """Sends the first words of a process; returns the call."""
    if way == "RegisterWorker":
        return stub.RegisterWorker(RegisterWorkerRequest(worker=SPEC, instance_id="dead"))
    call = stub.Work()
    await call.write(WorkRequest(attach=Attach(worker=SPEC, instance_id="dead", credits=1)))
    return call


@ways
async def test_the_first_words_of_a_dead_process_disturb_no_later_one(
    valkey_url: str, way: Way
) -> None:
    store = urlsplit(valkey_url)
    async with (
        Proxy(store.path) as to_store,
        stream_server(f"redis://{to_store.address}", PATIENT) as slow,
        stream_server(valkey_url, PATIENT, "s2") as there,
        Producer(there.address) as producer,
        RawWorker(there.address, instance="living") as living,
    ):
        await producer.submit()
        async with grpc.aio.insecure_channel(slow.address) as channel:
            stub = WorkerServiceStub(channel)
            before = WorkerSpec(worker_id="before", queues=["default"], operations=["work"])
            await stub.RegisterWorker(RegisterWorkerRequest(worker=before))
            to_store.hold()
            call = await _send(stub, way)
            # As for a server that was stopped: what it was about to do is done later.
            await eventually(lambda: b"dead" in to_store.held, "it is under way to the store")
            call.cancel()
        await eventually(lambda: not slow.calls.in_hand, "the process is seen to be gone")
        await living.attach()
        (first,) = await living.jobs(1)
        to_store.go_on()
        # What the store was sent before is done once it answers this.
        async with asyncio.timeout(20):
            while await slow.router.operators.find_worker("w1") is None:
                pass
        assert not (await living.complete(first)).refused
        await producer.submit()
        _, second = await living.jobs(2)
        assert not (await living.complete(second)).refused
        worker = await there.router.operators.find_worker("w1")
        assert worker is not None
        assert (worker.attached, worker.server_id) == (True, "s2")
        assert worker.status is WorkerStatus.READY
        assert not living.call.done()

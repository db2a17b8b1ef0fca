"""What is known of workers: what they tell of themselves, what they hold and can take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from jobwire.v1 import admin_service_pb2, admin_service_pb2_grpc, worker_service_pb2_grpc
from jobwire.v1 import worker_service_pb2 as pb

from tests.support.grpc_servers import refusal
from tests.support.streams import Producer, RawWorker, StreamServer, completion, lease_of
from tests.support.waiting import eventually

READY, PAUSED, DRAINING = (
    pb.WORKER_STATUS_READY,
    pb.WORKER_STATUS_PAUSED,
    pb.WORKER_STATUS_DRAINING,
)


class Calls:
    """A worker that makes calls, and an operator who looks at it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.workers: Any = worker_service_pb2_grpc.WorkerServiceStub(channel)
        self.admin: Any = admin_service_pb2_grpc.AdminServiceStub(channel)

    async def register(self, instance: str = "i1", **fields: Any) -> None:
        given = {"worker_id": "w1", "operations": ["work"], "concurrency": 4, **fields}
        request = pb.RegisterWorkerRequest(worker=pb.WorkerSpec(**given), instance_id=instance)
        await self.workers.RegisterWorker(request)

    async def tell(self, entries: dict[str, str] | None = None, status: Any = None) -> Any:
        request = pb.UpdateWorkerStatusRequest(worker_id="w1", status=status)
        if entries is not None:
            request.metadata.entries.update(entries)
            request.metadata.SetInParent()
        return (await self.workers.UpdateWorkerStatus(request)).status

    async def claim(self, most: int = 1) -> list[pb.Assignment]:
        request = pb.ClaimJobRequest(worker_id="w1", max_jobs=most)
        return [*(await self.workers.ClaimJob(request)).assignments]

    async def complete(self, assignment: pb.Assignment) -> None:
        request = pb.CompleteJobRequest(worker_id="w1", completion=completion(assignment))
        await self.workers.CompleteJob(request)

    async def until(self, condition: Any) -> admin_service_pb2.Worker:
        request = admin_service_pb2.GetWorkerRequest(worker_id="w1")
        async with asyncio.timeout(20):
            while True:
                worker = (await self.admin.GetWorker(request)).worker
                if condition(worker):
                    return worker
                await asyncio.sleep(0.02)

    async def worker(self) -> admin_service_pb2.Worker:
        request = admin_service_pb2.GetWorkerRequest(worker_id="w1")
        worker = (await self.admin.GetWorker(request)).worker
        (listed,) = (await self.admin.ListWorkers(admin_service_pb2.ListWorkersRequest())).workers
        del worker.leases[:]
        assert listed == worker
        return worker


@asynccontextmanager
async def _calls(address: str) -> AsyncIterator[Calls]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield Calls(channel)


@pytest.fixture
async def calls(server: StreamServer) -> AsyncIterator[Calls]:
    """A worker of the first server."""
    async with _calls(server.address) as worker:
        yield worker


class Watcher:
    """Reads what is told of workers."""

    def __init__(self, calls: Calls) -> None:
        self.told: list[admin_service_pb2.Worker] = []
        self._call = calls.admin.WatchWorkers(admin_service_pb2.WatchWorkersRequest())
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for answer in self._call:
            if answer.HasField("worker"):
                self.told.append(answer.worker)

    async def until(self, what: str, condition: Any) -> admin_service_pb2.Worker:
        await eventually(lambda: self.told and condition(self.told[-1]), what, timeout_s=20)
        return self.told[-1]

    async def __aenter__(self) -> Watcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


# What a worker tells of itself -----------------------------------------------------------


async def test_what_a_worker_tells_is_shown_until_it_tells_otherwise(calls: Calls) -> None:
    await calls.register(build_id="4f2c1")
    assert not (await calls.worker()).HasField("status_metadata")
    assert await calls.tell({"model": "llama", "temperature": "71"}) == READY
    worker = await calls.worker()
    assert dict(worker.status_metadata.entries) == {"model": "llama", "temperature": "71"}
    assert worker.spec.build_id == "4f2c1"
    # Unset is no change, of the one as of the other.
    assert await calls.tell(status=PAUSED) == PAUSED
    assert await calls.tell() == PAUSED
    worker = await calls.worker()
    assert (worker.status, len(worker.status_metadata.entries)) == (PAUSED, 2)
    # Replaced as a whole.
    assert await calls.tell({"model": "none"}) == PAUSED
    assert dict((await calls.worker()).status_metadata.entries) == {"model": "none"}
    await calls.tell({})
    assert not (await calls.worker()).status_metadata.entries


@pytest.mark.parametrize(
    ("entries", "field"),
    [
        ({f"key{at}": "" for at in range(17)}, "metadata.entries"),
        ({"ü": "x"}, "metadata.entries['ü']"),
        ({"x": "ü" * 129}, "metadata.entries['x']"),
    ],
)
async def test_what_is_out_of_bounds_is_refused_by_name_and_changes_nothing(
    calls: Calls, entries: dict[str, str], field: str
) -> None:
    await calls.register()
    refused = await refusal(calls.tell(entries, PAUSED))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [*refused.violations] == [field]
    assert (await calls.worker()).status == READY


@pytest.mark.parametrize("status", [-1, 4, 5, 99])
async def test_a_status_that_a_worker_cannot_choose_is_refused(calls: Calls, status: int) -> None:
    await calls.register()
    refused = await refusal(calls.tell({"a": "b"}, status))
    assert [*refused.violations] == ["status"]
    assert not (await calls.worker()).HasField("status_metadata")


async def test_a_worker_on_a_stream_tells_in_a_frame(server: StreamServer, calls: Calls) -> None:
    async with Watcher(calls) as watcher, RawWorker(server.address) as worker:
        attached = await worker.attach()
        assert "status_metadata" in attached.features
        for temperature in range(50):
            entries = {"temperature": str(temperature)}
            await worker.send(status_metadata=pb.StatusMetadata(entries=entries))
        await watcher.until("told", lambda w: w.status_metadata.entries == {"temperature": "49"})
        # However often it changes, it is told on now and then.
        assert len(watcher.told) < 20
        await worker.send(status=PAUSED)
        await watcher.until("paused", lambda w: w.status == PAUSED)
        assert (await calls.worker()).status_metadata.entries == {"temperature": "49"}


# Registering again -----------------------------------------------------------------------


async def test_the_same_process_changes_its_labels_and_keeps_its_history(calls: Calls) -> None:
    await calls.register(labels={"zone": "1"})
    await calls.tell({"model": "llama"}, PAUSED)
    before = await calls.worker()
    await asyncio.sleep(0.005)
    await calls.register(labels={"zone": "2"}, build_id="new", concurrency=7)
    after = await calls.worker()
    assert (dict(after.spec.labels), after.spec.build_id) == ({"zone": "2"}, "new")
    assert after.spec.concurrency == 7
    assert after.registered_at == before.registered_at
    assert (after.status, after.status_metadata) == (before.status, before.status_metadata)
    await calls.register("i2")
    fresh = await calls.worker()
    assert fresh.registered_at.ToMilliseconds() > before.registered_at.ToMilliseconds()
    assert fresh.status == READY
    assert not fresh.HasField("status_metadata")


async def test_attaching_again_changes_labels_and_keeps_totals(
    server: StreamServer, producer: Producer, calls: Calls
) -> None:
    async with RawWorker(server.address) as first:
        await first.attach()
        await producer.submit(3)
        await first.complete(*await first.jobs(3))
        before = await calls.until(lambda w: w.totals.succeeded == 3)
    async with RawWorker(server.address) as second:
        second.first.worker.labels["zone"] = "2"
        await second.attach()
        after = await calls.worker()
        assert dict(after.spec.labels) == {"zone": "2"}
        assert after.registered_at == before.registered_at
        assert after.totals.succeeded == 3
    async with RawWorker(server.address, instance="i2") as third:
        await third.attach()
        fresh = await calls.worker()
        assert fresh.registered_at != before.registered_at
        assert fresh.totals.assigned == 0


async def test_a_registration_beside_a_stream_ends_it_and_it_attaches_again(
    server: StreamServer, calls: Calls
) -> None:
    async with RawWorker(server.address) as streaming:
        await streaming.attach()
        before = await calls.worker()
        await calls.register(labels={"zone": "2"})
        code, details = await streaming.end()
        assert (code, "a newer one of its own" in details) == (grpc.StatusCode.ABORTED, True)
    async with RawWorker(server.address) as streaming:
        await streaming.attach()
        assert (await calls.worker()).registered_at == before.registered_at


# Held and free ---------------------------------------------------------------------------


async def test_a_worker_that_makes_calls_shows_what_it_holds_and_can_take(
    calls: Calls, producer: Producer
) -> None:
    await calls.register()
    await producer.submit(3)
    assert ((await calls.worker()).held_jobs, (await calls.worker()).free) == (0, 4)
    async with Watcher(calls) as watcher:
        await watcher.until("as it stands", lambda w: w.held_jobs == 0)
        got = await calls.claim(3)
        assert ((await calls.worker()).held_jobs, (await calls.worker()).free) == (3, 1)
        told = await watcher.until("the claim is told", lambda w: w.held_jobs == 3)
        assert told.free == 1
        for assignment in got:
            await calls.complete(assignment)
        told = await watcher.until("the ends are told", lambda w: w.held_jobs == 0)
        assert told.free == 4


async def test_of_a_worker_that_says_no_concurrency_it_is_not_known_what_is_free(
    calls: Calls,
) -> None:
    await calls.register(concurrency=0)
    assert not (await calls.worker()).HasField("free")


@pytest.mark.parametrize("status", [PAUSED, DRAINING])
async def test_a_worker_that_takes_no_jobs_has_nothing_free(calls: Calls, status: Any) -> None:
    await calls.register()
    await calls.tell(status=status)
    assert (await calls.worker()).free == 0


async def test_handlers_that_do_not_stop_are_not_free(calls: Calls) -> None:
    await calls.register()
    await calls.workers.Heartbeat(pb.HeartbeatRequest(worker_id="w1", stuck=3))
    assert (await calls.worker()).free == 1


async def test_a_worker_on_a_stream_shows_what_it_holds_and_can_take(
    server: StreamServer, producer: Producer, calls: Calls
) -> None:
    async with Watcher(calls) as watcher, RawWorker(server.address, credits=5) as worker:
        await worker.attach()
        told = await watcher.until("it attached", lambda w: w.credits == 5)
        assert (told.held_jobs, told.free) == (0, 5)
        await producer.submit(3)
        got = await worker.jobs(3)
        told = await watcher.until("its jobs are told", lambda w: w.held_jobs == 3)
        assert told.free == 2
        shown = await calls.worker()
        assert (shown.held_jobs, shown.free) == (3, 2)
        await worker.complete(*got)
        told = await watcher.until("the ends are told", lambda w: w.held_jobs == 0)
        assert told.free == 5
        await worker.send(credits=2)
        await watcher.until("fewer credits are told", lambda w: w.free == 2)


async def test_changes_of_what_a_worker_holds_are_told_once_a_second_at_most(
    server: StreamServer, producer: Producer, calls: Calls
) -> None:
    async with RawWorker(server.address, credits=3) as worker:
        await worker.attach()
        async with Watcher(calls) as watcher:
            await watcher.until("as it stands", lambda w: w.attached)
            loop = asyncio.get_running_loop()
            began, done = loop.time(), 0
            while loop.time() < began + 1.5:
                await producer.submit(1)
                await worker.complete((await worker.jobs(done + 1))[done])
                done += 1
            # As it stood, then once in each second and once more.
            assert len(watcher.told) <= 4
            assert done > 10


# Leaving ---------------------------------------------------------------------------------


async def test_a_worker_that_makes_calls_is_told_to_leave_as_one_on_a_stream(
    server: StreamServer, calls: Calls
) -> None:
    await calls.register()
    answer = await calls.workers.Heartbeat(pb.HeartbeatRequest(worker_id="w1"))
    assert not answer.HasField("drain")
    await calls.admin.DrainWorker(admin_service_pb2.DrainWorkerRequest(worker_id="w1"))
    beats = [
        (await calls.workers.Heartbeat(pb.HeartbeatRequest(worker_id="w1"))).drain for _ in range(2)
    ]
    # The same each time: time passes, and the deadline comes nearer.
    assert beats[0] == beats[1]
    async with RawWorker(server.address, "w2") as worker:
        await worker.attach()
        await calls.admin.DrainWorker(admin_service_pb2.DrainWorkerRequest(worker_id="w2"))
        await eventually(lambda: worker.drains, "it is told to leave", timeout_s=20)
        (told,) = worker.drains
    assert beats[0].leave
    assert told.leave
    assert beats[0].reason == told.reason == "the worker is to leave"
    assert abs(beats[0].deadline.ToMilliseconds() - told.deadline.ToMilliseconds()) < 60_000


# Credits in bytes, and features ----------------------------------------------------------


async def test_the_credit_in_bytes_changes_on_the_stream(
    server: StreamServer, producer: Producer
) -> None:
    async with RawWorker(server.address, credits=10, credit_bytes=30_000) as worker:
        attached = await worker.attach()
        assert "credit_bytes" in attached.features
        await producer.submit(8, size=10_000)
        await worker.jobs(2)
        assert worker.peak == 2
        await worker.send(credit_bytes=52_000)
        await worker.jobs(4)
        await worker.send(credit_bytes=0)
        await worker.jobs(8)
        await worker.send(credit_bytes=25_000)
        await worker.complete(*worker.got)
        await producer.submit(5, size=10_000)
        await worker.jobs(10)
        await worker.send(acks=[lease_of(one) for one in worker.held.values()])
        assert len(worker.got) == 10


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        ({"credit_bytes": -1}, "credit_bytes"),
        ({"credits": -1}, "credits"),
        ({"received": -1}, "received"),
        ({"stuck": -1}, "stuck"),
        ({"sequence": -1}, "sequence"),
        ({"status": 4}, "status"),
        ({"status": 77}, "status"),
        ({"status_metadata": pb.StatusMetadata(entries={"": ""})}, "status_metadata.entries['']"),
    ],
)
async def test_a_frame_with_a_number_out_of_range_is_refused_by_its_field(
    server: StreamServer, frame: dict[str, Any], field: str
) -> None:
    async with RawWorker(server.address, beats=False) as worker:
        await worker.attach()
        await worker.write_last(pb.WorkRequest(**frame))
        code, details = await worker.end()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert field in details


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"credits": -1}, "attach.credits"),
        ({"credit_bytes": -1}, "attach.credit_bytes"),
        ({"attempt": -1}, "attach.attempt"),
        ({"features": ["x"] * 65}, "attach.features"),
        ({"features": ["x" * 65]}, "attach.features[0]"),
        ({"worker": {"concurrency": -1}}, "attach.worker.concurrency"),
        ({"worker": {"build_id": "x" * 129}}, "attach.worker.build_id"),
    ],
)
async def test_an_attachment_out_of_range_is_refused_by_its_field(
    server: StreamServer, change: dict[str, Any], field: str
) -> None:
    async with RawWorker(server.address, beats=False) as worker:
        worker.first.MergeFrom(pb.Attach(**change))
        await worker.write_last(pb.WorkRequest(attach=worker.first))
        code, details = await worker.end()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert field in details


async def test_features_that_the_server_does_not_know_are_ignored(server: StreamServer) -> None:
    async with RawWorker(server.address) as worker:
        worker.first.features.extend(["received", "time_travel"])
        assert "received" in (await worker.attach()).features

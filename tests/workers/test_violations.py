"""Peers that speak the protocol wrongly: each gets a clear status, and nobody else is harmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from jobwire.v1.worker_service_pb2 import (
    Attach,
    Heartbeat,
    LeaseRef,
    Report,
    WorkerSpec,
    WorkRequest,
)
from jobwire_server.servicers import streams

from tests.support.streams import (
    QUICK,
    Producer,
    RawWorker,
    StreamServer,
    completion,
    lease_of,
    stream_server,
)
from tests.support.waiting import eventually

METHOD = "/jobwire.v1.WorkerService/Work"
PATIENT = replace(QUICK, heartbeat_interval_ms=5_000, claim_timeout_ms=30_000)
"""Nothing but the violation ends a stream, however slow the machine is."""


@pytest.fixture
async def server(valkey_url: str) -> AsyncIterator[StreamServer]:
    """A server that only a violation annoys."""
    async with stream_server(valkey_url, PATIENT) as running:
        yield running


@pytest.fixture
async def bystander(server: StreamServer, producer: Producer) -> AsyncIterator[RawWorker]:
    """Another worker, which goes on working whatever happens."""
    async with RawWorker(server.address, "bystander", queues=["aside"]) as worker:
        await worker.attach()
        (job_id,) = await producer.submit(queue="aside")
        jobs = await worker.jobs(1)
        yield worker
        assert not (await worker.complete(*jobs)).refused
        (job_id,) = await producer.submit(queue="aside")
        assert (await worker.jobs(2))[1].job_id == job_id
        assert not worker.lost
        assert not worker.call.done()
        # Of the one who did wrong nothing is left.
        streams = server.parts.streams
        await eventually(lambda: streams.count == 1, "the other sessions are over")
        await eventually(lambda: not streams.settling, "and done with")


def attach(**changes: Any) -> WorkRequest:
    """Returns a first frame, changed in some fields."""
    fields: dict[str, Any] = {"instance_id": "i1", "credits": 1, **changes}
    fields.setdefault("worker", WorkerSpec(worker_id="bad", operations=["work"]))
    return WorkRequest(attach=Attach(**fields))


LONG = [LeaseRef(job_id="x", fencing_token=1)] * 10_001
FIRST = {
    "an ack before attach": (WorkRequest(acks=LONG[:1]), "attach"),
    "a heartbeat before attach": (WorkRequest(heartbeat=Heartbeat()), "attach"),
    "an empty first frame": (WorkRequest(), "attach"),
    "no worker": (WorkRequest(attach=Attach(instance_id="i")), "attach.worker.worker_id"),
    "no operations": (attach(worker=WorkerSpec(worker_id="bad")), "attach.worker.operations"),
    "no instance": (attach(instance_id=""), "attach.instance_id"),
    "a bad instance": (attach(instance_id="a b"), "attach.instance_id"),
    "too many credits": (attach(credits=10_001), "attach.credits"),
    "too many leases": (attach(leases=LONG), "attach.leases"),
    "leases without ids": (attach(leases=LONG[:3]), "attach.leases[2].job_id"),
    "ten thousand leases without ids": (attach(leases=LONG[:10_000]), "attach.leases[0].job_id"),
    "a bad queue": (
        attach(worker=WorkerSpec(worker_id="bad", operations=["work"], queues=["Q!"])),
        "attach.worker.queues[0]",
    ),
}


@pytest.mark.parametrize("case", FIRST)
async def test_a_first_frame_that_is_wrong_ends_the_stream(
    server: StreamServer, bystander: RawWorker, case: str
) -> None:
    frame, field = FIRST[case]
    async with RawWorker(server.address, "bad") as bad:
        await bad.write_last(frame)
        code, details = await bad.end()
    assert (code.name, field in details) == ("INVALID_ARGUMENT", True), details


JOB = "default-01m83a0kes6dmbq1d05hcd8awx"
LATER = {
    "a second attach": (attach(), "attach"),
    "no sequence with completions": (
        WorkRequest(completions=[{"job_id": JOB}]),  # type: ignore[list-item]
        "sequence",
    ),
    "no sequence with reports": (WorkRequest(reports=[Report(job_id=JOB)]), "sequence"),
    "too many acks": (WorkRequest(acks=LONG), "acks"),
    "too many reports": (WorkRequest(sequence=1, reports=[Report()] * 1_001), "reports"),
    "too many credits": (WorkRequest(credits=10_001), "credits"),
    "a status that is the server's": (WorkRequest(status=4), "status"),  # type: ignore[arg-type]
    "a status that nobody knows": (WorkRequest(status=77), "status"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", LATER)
async def test_a_later_frame_that_is_wrong_ends_the_stream(
    server: StreamServer, bystander: RawWorker, producer: Producer, case: str
) -> None:
    frame, field = LATER[case]
    await producer.submit()
    async with RawWorker(server.address, "bad") as bad:
        await bad.attach()
        await bad.jobs(1)
        await bad.write_last(frame)
        code, details = await bad.end()
    assert (code.name, field in details) == ("INVALID_ARGUMENT", True), details


async def test_a_frame_in_which_the_server_knows_nothing_is_a_sign_of_life(
    server: StreamServer, producer: Producer
) -> None:
    async with RawWorker(server.address, "newer", credits=0) as newer:
        await newer.attach()
        # Field 200, which this contract does not have.
        await newer.write(WorkRequest.FromString(b"\xc2\x0c\x03abc"))
        await newer.write(WorkRequest())
        await newer.write(WorkRequest(credits=1))
        await producer.submit()
        await newer.jobs(1)


async def test_a_frame_of_a_later_version_with_something_known_is_taken(
    server: StreamServer, bystander: RawWorker, producer: Producer
) -> None:
    known = WorkRequest(credits=3).SerializeToString()
    async with RawWorker(server.address, "newer", credits=0) as newer:
        await newer.attach()
        await newer.write(WorkRequest.FromString(known + b"\xc2\x0c\x03abc"))
        await producer.submit(3)
        await newer.jobs(3)


@pytest.mark.parametrize("after_attach", [False, True])
async def test_bytes_that_are_no_frame_end_the_stream(
    server: StreamServer, bystander: RawWorker, after_attach: bool
) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        call: Any = channel.stream_stream(METHOD)()
        if after_attach:
            await call.write(attach().SerializeToString())
            await call.read()
        await call.write(b"\x0a\xff\xff\xff\xff")
        async with asyncio.timeout(20):
            code, details = await call.code(), await call.details()
    assert code.name == "INVALID_ARGUMENT", details
    assert "can't be read as the method's message" in details


async def test_a_stream_on_which_nobody_attaches_is_ended(
    server: StreamServer, bystander: RawWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "FIRST_TIMEOUT_S", 0.2)
    async with grpc.aio.insecure_channel(server.address) as channel:
        call: Any = channel.stream_stream(METHOD)()
        async with asyncio.timeout(20):
            code, details = await call.code(), await call.details()
    assert (code.name, "attach" in details) == ("INVALID_ARGUMENT", True)


async def test_a_stream_that_is_closed_before_it_attaches_is_refused(
    server: StreamServer, bystander: RawWorker
) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        call: Any = channel.stream_stream(METHOD)()
        await call.done_writing()
        async with asyncio.timeout(20):
            code, details = await call.code(), await call.details()
    assert (code.name, "attach" in details) == ("INVALID_ARGUMENT", True)


async def test_a_message_above_the_limit_is_refused(
    server: StreamServer, bystander: RawWorker
) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        call: Any = channel.stream_stream(METHOD)()
        await call.write(b"\x0a" * ((16 << 20) + 1))
        async with asyncio.timeout(20):
            code = await call.code()
    assert code.name == "RESOURCE_EXHAUSTED"


async def test_acks_of_jobs_that_never_were_are_answered_and_change_nothing(
    server: StreamServer, bystander: RawWorker, producer: Producer
) -> None:
    async with RawWorker(server.address, "bad", credits=1) as bad:
        await bad.attach()
        await bad.send(acks=LONG[:5])
        await eventually(lambda: len(bad.lost) == 5, "each is answered")
        foreign = bystander.got[0]
        await bad.ack(foreign)
        await eventually(lambda: bad.lost[-1] == lease_of(foreign), "and so is another worker's")
        await producer.submit()
        (assignment,) = await bad.jobs(1)
        assert not (await bad.complete(assignment)).refused


async def test_a_flood_from_a_peer_that_does_not_read_is_not_gathered(
    server: StreamServer, bystander: RawWorker
) -> None:
    """Each frame asks for an answer of its own size, and none is read."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        call: Any = channel.stream_stream(METHOD)()
        await call.write(attach().SerializeToString())
        await call.read()
        session = server.parts.sessions.by_worker["bad"]
        flood = WorkRequest(acks=[LeaseRef(job_id="y" * 200)] * 5_000).SerializeToString()

        async def write() -> None:
            while True:
                await call.write(flood)

        writing = asyncio.create_task(write())
        most = 0
        try:
            async with asyncio.timeout(30):
                while not session.ended.done():
                    # Private: how much waits for a peer that does not read shows nowhere else.
                    most = max(most, len(session.outgoing._next.lost))
                    await asyncio.sleep(0.005)
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            call.cancel()
    assert 5_000 <= most <= 25_000
    assert "not read" in str(session.ended.exception())


async def test_an_item_of_no_known_outcome_ends_nothing(
    server: StreamServer, bystander: RawWorker, producer: Producer
) -> None:
    await producer.submit()
    async with RawWorker(server.address, "newer") as newer:
        await newer.attach()
        (assignment,) = await newer.jobs(1)
        item = completion(assignment)
        item.ClearField("success")
        # An outcome 99 of a later version.
        item.MergeFromString(b"\x9a\x06\x00")
        receipt = await newer.receipt(await newer.post([item]))
        assert [v.field for r in receipt.refused for v in r.error.violations] == ["outcome"]
        assert not (await newer.complete(assignment)).refused

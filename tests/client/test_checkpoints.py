"""Checkpoints: what a handler saves for the next attempt."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from jobwire import CallError, Context, LeaseLost, Worker, to_payload
from jobwire.v1 import errors_pb2, job_pb2
from jobwire.v1 import worker_service_pb2 as pb

from tests.client import handlers
from tests.client.broker import Broker, reason, rich_status
from tests.client.peer import Peer, Stream, peer, streaming
from tests.client.support import completion, worker_at

__all__ = ["peer"]

AWAY = rich_status(grpc.StatusCode.UNAVAILABLE, "away", reason("STORE_UNAVAILABLE"))


def unary(broker: Broker, **functions: Any) -> Worker:
    return worker_at(broker.target, "unary", **functions)


def reports_of(stream: Stream, job: str) -> list[pb.Report]:
    return [report for report in stream.reports if report.job_id == job]


def answer(stream: Stream, number: int, error: errors_pb2.ItemError | None = None) -> None:
    """Answer the frame of a report, which the peer has left to the test."""
    carried = [(frame, report) for frame in stream.frames for report in frame.reports]
    frame, report = carried[number]
    refused = [pb.Refused(job_id=report.job_id, fencing_token=report.fencing_token, error=error)]
    stream.send(receipts=[pb.Receipt(sequence=frame.sequence, refused=refused if error else [])])


async def resume(context: Context) -> Any:
    before = context.checkpoint
    await context.save_checkpoint({"done": 5})
    return before


def resume_in_thread(context: Context) -> Any:
    before = context.checkpoint
    context.save_checkpoint({"done": 5})
    return before


async def test_a_handler_gets_what_the_attempt_before_saved(peer: Peer) -> None:
    async with streaming(peer, resume=resume):
        stream = await peer.stream()
        assignment = peer.new_job("resume")
        assignment.checkpoint.json = '{"done":2}'
        stream.send(assignments=[assignment])
        said = await stream.completion(assignment.job_id)
        assert said.success.result.json == '{"done":2}'
        assert [report.checkpoint.json for report in stream.reports] == ['{"done":5}']


@pytest.mark.parametrize("function", [resume, resume_in_thread])
async def test_a_saving_is_over_with_its_receipt_and_not_before(peer: Peer, function: Any) -> None:
    peer.receipts = False
    async with streaming(peer, resume=function):
        stream = await peer.stream()
        (job,) = stream.assign("resume")
        await stream.started(job)
        stream.assign("nothing")
        await peer.until(lambda: stream.completions)
        assert [said.job_id for said in stream.completions] != [job]
        answer(stream, 0)
        assert (await stream.completion(job)).HasField("success")
        peer.receipts = True
        stream.send(receipts=[pb.Receipt(sequence=f.sequence) for f in stream.frames])


async def test_savings_made_at_once_go_out_one_by_one_and_the_newest_wins(peer: Peer) -> None:
    async def save(context: Context) -> None:
        context.progress(0.5)
        await asyncio.gather(*(context.save_checkpoint(number) for number in range(5)))

    peer.receipts = False
    async with streaming(peer, save=save):
        stream = await peer.stream()
        (job,) = stream.assign("save")
        await stream.started(job)
        answer(stream, 0)
        await peer.until(lambda: len(stream.reports) == 2)
        answer(stream, 1)
        assert (await stream.completion(job)).HasField("success")
        stream.send(receipts=[pb.Receipt(sequence=f.sequence) for f in stream.frames])
    assert [report.checkpoint.json for report in stream.reports] == ["0", "4"]
    assert stream.reports[0].progress.fraction == 0.5


async def test_a_saving_goes_out_again_on_the_next_stream(peer: Peer) -> None:
    peer.receipts = False
    async with streaming(peer, resume=resume):
        first = await peer.stream()
        (job,) = first.assign("resume")
        await first.started(job)
        peer.receipts = True
        first.end(AWAY)
        second = await peer.stream(1)
        assert (await second.completion(job)).HasField("success")
        assert [report.checkpoint.json for report in second.reports] == ['{"done":5}']


async def test_a_store_that_is_away_for_a_while_does_not_fail_a_saving(peer: Peer) -> None:
    peer.receipts = False
    async with streaming(peer, resume=resume):
        stream = await peer.stream()
        (job,) = stream.assign("resume")
        await stream.started(job)
        answer(stream, 0, errors_pb2.ItemError(code=14, message="away"))
        await peer.until(lambda: len(reports_of(stream, job)) == 2)
        answer(stream, 1)
        assert (await stream.completion(job)).HasField("success")
        stream.send(receipts=[pb.Receipt(sequence=f.sequence) for f in stream.frames])


async def test_a_refused_saving_is_told_to_the_handler(peer: Peer) -> None:
    async def save(context: Context) -> str:
        try:
            await context.save_checkpoint(1)
        except CallError as error:
            return error.message
        return "saved"

    peer.receipts = False
    async with streaming(peer, save=save):
        stream = await peer.stream()
        (job,) = stream.assign("save")
        await stream.started(job)
        answer(stream, 0, errors_pb2.ItemError(code=3, message="too large"))
        assert (await stream.completion(job)).success.result.json == '"too large"'
        stream.send(receipts=[pb.Receipt(sequence=f.sequence) for f in stream.frames])


async def test_whoever_saves_for_a_lost_lease_is_told_so(peer: Peer) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    gate = asyncio.Event()

    async def save(context: Context) -> None:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            try:
                await context.save_checkpoint(1)
            except LeaseLost as error:
                await told.put(error.reason)
            raise

    async with streaming(peer, save=save):
        stream = await peer.stream()
        (job,) = stream.assign("save")
        await peer.until(lambda: stream.arrived)
        stream.send(lost_leases=[pb.LeaseRef(job_id=job, fencing_token=1)])
        async with asyncio.timeout(20):
            assert await told.get() == "LEASE_LOST"


async def test_a_handler_that_is_cancelled_saves_before_its_end_is_told(peer: Peer) -> None:
    async def save(context: Context) -> None:
        context.progress(None, "started")
        try:
            await asyncio.Event().wait()
        finally:
            await context.save_checkpoint("last words")

    async with streaming(peer, save=save):
        stream = await peer.stream()
        (job,) = stream.assign("save")
        await stream.started(job)
        stream.send(cancellations=[pb.CancelNotice(job_id=job, fencing_token=1)])
        assert (await stream.completion(job)).HasField("cancelled")
        assert stream.reports[-1].checkpoint.json == '"last words"'


async def test_a_saving_that_nobody_awaits_is_sent_before_the_end(peer: Peer) -> None:
    async def save(context: Context) -> None:
        context.save_checkpoint(1)
        context.save_checkpoint(2)
        raise RuntimeError("no more")

    async with streaming(peer, save=save):
        stream = await peer.stream()
        (job,) = stream.assign("save")
        assert (await stream.completion(job)).HasField("failure")
        assert stream.reports[-1].checkpoint.json == "2"


@pytest.mark.parametrize("function", [resume, resume_in_thread])
async def test_a_saving_in_single_calls_outlives_outages(broker: Broker, function: Any) -> None:
    broker.fail("UpdateProgress", AWAY, AWAY)
    async with unary(broker, resume=function):
        job = await broker.add("resume")
        assert (await completion(broker, job)).HasField("success")
    calls = broker.calls["UpdateProgress"]
    assert [call.checkpoint.json for call in calls] == ['{"done":5}'] * 3


async def test_a_saving_in_single_calls_that_is_refused_is_told(broker: Broker) -> None:
    async def save(context: Context) -> str:
        with pytest.raises(CallError, match="too large"):
            await context.save_checkpoint(1)
        return "told"

    broker.fail("UpdateProgress", rich_status(grpc.StatusCode.INVALID_ARGUMENT, "too large"))
    async with unary(broker, save=save):
        job = await broker.add("save")
        assert (await completion(broker, job)).success.result.json == '"told"'


@pytest.mark.processes
async def test_a_handler_in_a_process_saves_and_is_told_of_refusals(peer: Peer) -> None:
    peer.receipts = False
    worker = Worker(peer.target, concurrency=2, shutdown_grace_s=10, prefetch=0)
    worker.operation("save", run="process")(handlers.save)
    async with worker:
        stream = await peer.stream()
        assignment = peer.new_job("save")
        assignment.checkpoint.json = "1"
        assignment.spec.execution_timeout.seconds = 3600
        stream.send(assignments=[assignment])
        await peer.until(lambda: len(stream.reports) == 1)
        assert stream.reports[0].checkpoint.json == "2"
        answer(stream, 0)
        await peer.until(lambda: len(stream.reports) == 2)
        refused = errors_pb2.ItemError(code=3, message="no")
        refused.reason = errors_pb2.ERROR_REASON_INVALID_FIELD
        answer(stream, 1, refused)
        said = await stream.completion(assignment.job_id)
        assert said.success.result.json == '["InvalidRequest","no","INVALID_FIELD",true]'
        stream.send(receipts=[pb.Receipt(sequence=f.sequence) for f in stream.frames])


async def test_what_is_too_large_or_has_no_form_is_refused_at_once() -> None:
    context = Context.for_test()
    with pytest.raises(ValueError, match="at most 65536"):
        await context.save_checkpoint(bytes(65537))
    with pytest.raises(TypeError, match="can't be a payload"):
        await context.save_checkpoint({1, 2})
    assert context.checkpoints == []


async def test_a_test_sees_what_a_handler_saves() -> None:
    context = Context.for_test(checkpoint={"done": 2})
    assert await resume(context) == {"done": 2}
    assert context.checkpoints == [{"done": 5}]


def test_a_sync_handler_is_tested_without_a_loop() -> None:
    context = Context.for_test()
    assert resume_in_thread(context) is None
    assert context.checkpoints == [{"done": 5}]


def test_a_checkpoint_may_be_a_message_or_bytes() -> None:
    context = Context.for_test(checkpoint=b"\x00")
    assert context.checkpoint == b"\x00"
    assert context.raw_checkpoint == to_payload(b"\x00") == job_pb2.Payload(data=b"\x00")

"""The worker on a stream: jobs, frames, receipts."""

from __future__ import annotations

import asyncio
import logging
import threading
from types import SimpleNamespace

import pytest

from jobwire import Context, Worker, to_payload
from jobwire.v1 import errors_pb2
from jobwire.v1 import worker_service_pb2 as pb
from jobwire.v1.job_pb2 import Progress
from jobwire.worker.transport.outbox import Outbox

from tests.client.broker import Broker
from tests.client.peer import Peer, holding, peer, streaming
from tests.client.support import worker_of
from tests.support.waiting import eventually

__all__ = ["peer"]


def refusal(code: int, name: str) -> errors_pb2.ItemError:
    number = errors_pb2.ErrorReason.Value(f"ERROR_REASON_{name}")
    return errors_pb2.ItemError(code=code, message="no", reason=number)


async def test_an_attachment_says_what_the_worker_is_and_can_take(peer: Peer) -> None:
    worker = Worker(
        peer.target, queues=["a"], labels={"gpu": "a100"}, concurrency=3, prefetch=5, lease_s=7
    )
    worker.credit_bytes = 1000
    worker.operation("x")(lambda context: None)
    async with worker:
        attach = (await peer.stream()).attach
    assert (attach.worker.worker_id, attach.worker.operations) == (worker.id, ["x"])
    assert (attach.worker.queues, attach.worker.labels) == (["a"], {"gpu": "a100"})
    assert attach.worker.lease_duration.seconds == 7
    assert (attach.credits, attach.credit_bytes, list(attach.leases)) == (8, 1000, [])
    assert attach.instance_id


async def test_a_job_runs_and_counts_once_its_receipt_is_there(peer: Peer) -> None:
    peer.receipts = False
    async with streaming(peer, add=lambda context: sum(context.payload)) as worker:
        stream = await peer.stream()
        (job,) = stream.assign("add", payload=to_payload([1, 2, 3]))
        said = await stream.completion(job)
        assert (said.success.result.json, said.fencing_token) == ("6", 1)
        assert (worker.stats.assigned, worker.stats.succeeded) == (1, 0)
        sequence = next(frame.sequence for frame in stream.frames if frame.completions)
        stream.send(receipts=[pb.Receipt(sequence=sequence)])
        await eventually(lambda: worker.stats.succeeded == 1, "the success counts")
    assert worker.stats.succeeded == 1


@pytest.mark.parametrize("features", [["received"], []])
async def test_an_assignment_is_acknowledged_before_its_handler_ends(
    peer: Peer, features: list[str]
) -> None:
    peer.features = features

    async def quick(context: Context) -> None: ...

    async with streaming(peer, quick=quick):
        stream = await peer.stream()
        (job,) = stream.assign("quick")
        await stream.completion(job)
    told = [bool(frame.received or frame.acks) for frame in stream.frames if not frame.credits]
    ends = [bool(frame.completions) for frame in stream.frames if not frame.credits]
    assert told.index(True) < ends.index(True)


async def test_a_job_without_news_is_acknowledged_all_the_same(peer: Peer) -> None:
    gate = threading.Event()
    async with streaming(peer, wait=lambda context: gate.wait(30)):
        stream = await peer.stream()
        (job,) = stream.assign("wait")
        await peer.until(lambda: stream.arrived == [job])
        gate.set()


async def test_reports_are_gathered_and_the_last_one_comes_before_the_completion(
    peer: Peer,
) -> None:
    def busy(context: Context) -> None:
        for n in range(1000):
            context.progress(n / 1000, f"step {n}")
        context.progress(7.0, "done")

    async with streaming(peer, busy=busy):
        stream = await peer.stream()
        (job,) = stream.assign("busy")
        await stream.completion(job)
    assert stream.reports[-1].progress.message == "done"
    assert len(stream.reports) < 20
    with_completion = [frame for frame in stream.frames if frame.completions]
    assert not any(frame.reports for frame in with_completion)


async def test_a_completion_waits_for_the_receipt_of_the_last_report(peer: Peer) -> None:
    peer.receipts = False

    def report(context: Context) -> None:
        context.progress(0.5)

    async with streaming(peer, report=report, other=lambda context: None):
        stream = await peer.stream()
        (job,) = stream.assign("report")
        await stream.started(job)
        (other,) = stream.assign("other")
        await stream.completion(other)
        assert [c.job_id for c in stream.completions] == [other]
        peer.receipts = True
        for frame in stream.frames:
            if frame.sequence:
                stream.send(receipts=[pb.Receipt(sequence=frame.sequence)])
        await stream.completion(job)


async def test_a_completion_that_could_not_be_stored_for_now_is_said_again(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobwire.worker.transport.report_queue.RESEND_S", 0.01)
    async with streaming(peer, ok=lambda context: 1) as worker:
        stream = await peer.stream()
        assignment = peer.new_job("ok")
        peer.refusals[assignment.job_id].extend(
            [refusal(14, "STORE_UNAVAILABLE"), refusal(8, "SERVER_BUSY")]
        )
        stream.send(assignments=[assignment])
        await eventually(lambda: worker.stats.succeeded == 1, "it is recorded in the end")
    assert [c.job_id for c in stream.completions] == [assignment.job_id] * 3


async def test_a_completion_without_its_lease_is_forgotten(peer: Peer) -> None:
    async with streaming(peer, ok=lambda context: 1) as worker:
        stream = await peer.stream()
        assignment = peer.new_job("ok")
        peer.refusals[assignment.job_id].append(refusal(9, "LEASE_LOST"))
        stream.send(assignments=[assignment])
        await eventually(lambda: worker.stats.lost == 1, "the loss is noted")
    assert len(stream.completions) == 1
    assert worker.stats.succeeded == 0


async def test_a_result_that_the_broker_refuses_becomes_a_failure(peer: Peer) -> None:
    async with streaming(peer, big=lambda context: "x") as worker:
        stream = await peer.stream()
        assignment = peer.new_job("big")
        peer.refusals[assignment.job_id].append(refusal(3, "TOO_LARGE"))
        stream.send(assignments=[assignment])
        await eventually(lambda: worker.stats.failed == 1, "the failure is recorded")
    first, second = stream.completions
    assert first.HasField("success")
    assert (second.failure.type, second.failure.non_retryable) == ("InvalidResult", True)


async def test_a_result_too_large_for_any_frame_becomes_a_failure(peer: Peer) -> None:
    # The test's server takes messages of 4 MiB, as gRPC does unless told otherwise.
    async with streaming(peer, huge=lambda context: bytes(5 << 20)) as worker:
        first = await peer.stream()
        first.assign("huge")
        second = await peer.stream(1)
        await eventually(lambda: worker.stats.failed == 1, "the failure is recorded")
    (said,) = second.completions
    assert said.failure.type == "InvalidResult"


async def test_frames_become_smaller_where_large_ones_are_refused(peer: Peer) -> None:
    gate = asyncio.Event()

    async def write(context: Context) -> bytes:
        await gate.wait()
        context.output(bytes(900 << 10))
        return bytes(900 << 10)

    # The test's server takes messages of 4 MiB, and all that there is to say comes at once.
    worker = streaming(peer, write=write)
    worker.concurrency = 12
    async with worker:
        stream = await peer.stream()
        stream.assign(*["write"] * 12)
        await peer.until(lambda: len(stream.arrived) == 12)
        gate.set()
        await eventually(lambda: worker.stats.succeeded == 12, "all are recorded")
    said = [c.job_id for stream in peer.streams for c in stream.completions]
    assert len(set(said)) == 12


async def test_more_completions_than_a_frame_may_hold_go_in_several(peer: Peer) -> None:
    gate = asyncio.Event()

    async def wait(context: Context) -> None:
        await gate.wait()

    worker = streaming(peer, wait=wait)
    worker.concurrency = 2500
    async with worker:
        stream = await peer.stream()
        stream.assign(*["wait"] * 2500)
        await peer.until(lambda: len(stream.arrived) == 2500)
        gate.set()
        await peer.until(lambda: len(stream.completions) == 2500)
    assert len({c.job_id for c in stream.completions}) == 2500


async def test_a_frame_holds_as_many_completions_as_it_may() -> None:
    outbox = Outbox(SimpleNamespace(capacity=0, stuck=0))  # type: ignore[arg-type]  # all that it asks for
    outbox.complete([pb.Completion(job_id=str(at), fencing_token=1) for at in range(2500)])
    frames = [frame for _ in range(4) if (frame := outbox.next_frame()) is not None]
    assert [len(frame.completions) for frame in frames] == [1000, 1000, 500]


async def test_what_the_broker_could_not_record_is_said_again_when_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobwire.worker.transport.report_queue.RESEND_S", 0.01)
    outbox = Outbox(SimpleNamespace(capacity=0, stuck=0, recorded=list))  # type: ignore[arg-type]
    outbox.complete([pb.Completion(job_id="j", fencing_token=1, success=pb.Success())])
    first = outbox.next_frame()
    assert first is not None
    error = refusal(8, "SERVER_BUSY")
    error.retry_delay.FromMilliseconds(100)
    refused = pb.Refused(job_id="j", fencing_token=1, error=error)
    asked_at = asyncio.get_running_loop().time()
    outbox.receive(pb.Receipt(sequence=first.sequence, refused=[refused]))
    await eventually(lambda: not outbox.will_resend, "it is said again")
    assert asyncio.get_running_loop().time() - asked_at >= 0.095
    again = outbox.next_frame()
    assert again is not None
    assert [completion.job_id for completion in again.completions] == ["j"]


@pytest.mark.parametrize("saves", [False, True])
async def test_progress_that_could_not_be_stored_for_now_does_not_replace_newer(
    monkeypatch: pytest.MonkeyPatch, saves: bool
) -> None:
    monkeypatch.setattr("jobwire.worker.transport.report_queue.RESEND_S", 0.01)
    host = SimpleNamespace(capacity=0, stuck=0, recorded=list, saved=lambda lease, error: None)
    outbox = Outbox(host)  # type: ignore[arg-type]  # all that it asks for
    lease = pb.LeaseRef(job_id="j", fencing_token=1)
    outbox.report(lease, Progress(message="old"), None, to_payload(1) if saves else None)
    first = outbox.next_frame()
    assert first is not None
    refused = pb.Refused(job_id="j", fencing_token=1, error=refusal(14, "STORE_UNAVAILABLE"))
    outbox.receive(pb.Receipt(sequence=first.sequence, refused=[refused]))
    outbox.report(lease, Progress(message="new"))
    second = outbox.next_frame()
    assert second is not None
    outbox.receive(pb.Receipt(sequence=second.sequence))
    await eventually(lambda: not outbox.will_resend, "it is said again, if at all")
    third = outbox.next_frame()
    reports = list(third.reports) if third is not None else []
    assert not any(report.HasField("progress") for report in reports)
    assert [report.checkpoint.json for report in reports] == ["1"] * saves


async def test_a_cancelled_job_stops_and_confirms(peer: Peer) -> None:
    async with streaming(peer, hold=holding(asyncio.Event())):
        stream = await peer.stream()
        (job,) = stream.assign("hold")
        await stream.started(job)
        stream.send(cancellations=[pb.CancelNotice(job_id=job, fencing_token=1)])
        assert (await stream.completion(job)).HasField("cancelled")


@pytest.mark.parametrize("mode", ["async", "thread"])
async def test_a_job_cancelled_with_its_assignment_still_gets_an_answer(
    peer: Peer, mode: str
) -> None:
    async def hold(context: Context) -> None:
        await asyncio.Event().wait()

    def wait(context: Context) -> None:
        context.wait_cancelled(30)
        context.raise_if_cancelled()

    async with streaming(peer, job=hold if mode == "async" else wait) as worker:
        stream = await peer.stream()
        assignment = peer.new_job("job")
        notice = pb.CancelNotice(job_id=assignment.job_id, fencing_token=1)
        stream.send(assignments=[assignment], cancellations=[notice])
        assert (await stream.completion(assignment.job_id)).HasField("cancelled")
        await eventually(lambda: worker.stats.running == 0, "the place is free")


async def test_a_job_cancelled_before_its_handler_began_never_starts(peer: Peer) -> None:
    began: list[str] = []
    gate = asyncio.Event()

    async def hold(context: Context) -> None:
        began.append(context.job_id)
        await gate.wait()

    worker = streaming(peer, hold=hold)
    worker.concurrency, worker.prefetch = 1, 1
    async with worker:
        stream = await peer.stream()
        first, second = stream.assign("hold", "hold")
        stream.send(cancellations=[pb.CancelNotice(job_id=second, fencing_token=1)])
        assert (await stream.completion(second)).HasField("cancelled")
        gate.set()
        await stream.completion(first)
    assert began == [first]


async def test_a_handler_whose_lease_is_lost_is_stopped_and_says_nothing(peer: Peer) -> None:
    stopped = asyncio.Event()

    async def hold(context: Context) -> None:
        context.progress(None, "started")
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with streaming(peer, hold=hold) as worker:
        stream = await peer.stream()
        (job,) = stream.assign("hold")
        await stream.started(job)
        stream.send(lost_leases=[pb.LeaseRef(job_id=job, fencing_token=1)])
        async with asyncio.timeout(10):
            await stopped.wait()
        assert worker.stats.lost == 1
    assert stream.completions == []


async def test_a_handler_that_ignores_the_loss_takes_its_place_out_of_the_credits(
    peer: Peer,
) -> None:
    gate = threading.Event()

    def stubborn(context: Context) -> None:
        context.progress(None, "started")
        gate.wait(30)

    async with streaming(peer, stubborn=stubborn):
        stream = await peer.stream()
        (job,) = stream.assign("stubborn")
        await stream.started(job)
        stream.send(lost_leases=[pb.LeaseRef(job_id=job, fencing_token=1)])
        await peer.until(lambda: stream.credits == 3)
        gate.set()
        await peer.until(lambda: stream.credits == 4)


async def test_a_job_handed_out_anew_is_run_under_its_new_token_alone(peer: Peer) -> None:
    gate = asyncio.Event()
    async with streaming(peer, hold=holding(gate)):
        stream = await peer.stream()
        assignment = peer.new_job("hold")
        stream.send(assignments=[assignment])
        await stream.started(assignment.job_id)
        again = pb.Assignment()
        again.CopyFrom(assignment)
        again.fencing_token = 2
        stream.send(assignments=[again])
        await peer.until(lambda: {r.fencing_token for r in stream.reports} == {1, 2})
        gate.set()
        assert (await stream.completion(assignment.job_id)).fencing_token == 2
    assert len(stream.completions) == 1


async def test_a_job_without_a_handler_here_fails(peer: Peer) -> None:
    async with streaming(peer, ok=lambda context: 1):
        stream = await peer.stream()
        (job,) = stream.assign("unknown")
        assert (await stream.completion(job)).failure.type == "LookupError"


async def test_a_quick_worker_keeps_jobs_ready_and_a_slow_one_gives_them_back(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobwire.worker.core.LONGEST_WAIT_S", 60.0)
    gate, held = asyncio.Event(), asyncio.Event()

    async def quick(context: Context) -> None: ...

    async def hold(context: Context) -> None:
        held.set()
        await gate.wait()

    worker = streaming(peer, quick=quick, hold=hold)
    worker.concurrency, worker.prefetch = 1, None
    async with worker:
        stream = await peer.stream()
        assert stream.credits == 1
        count = 0
        async with asyncio.timeout(30):
            # As quick as the machine is, it is more than a job or two at a time.
            while all(frame.credits <= 10 for frame in stream.frames):
                count += len(stream.assign(*["quick"] * 100))
                await peer.until(lambda: len(stream.completions) == count)  # noqa: B023
        first, *others = stream.assign(*["hold"] * 10)
        await held.wait()
        monkeypatch.setattr("jobwire.worker.core.LONGEST_WAIT_S", 0.05)
        await peer.until(lambda: len(stream.completions) == count + 9)
        assert stream.credits == 1
        released = {c.job_id for c in stream.completions if c.released.not_started}
        assert released == set(others)
        gate.set()
        await stream.completion(first)


async def test_a_broker_without_streams_is_talked_to_in_single_calls(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "jobwire.worker"):
        async with worker_of(broker, ok=lambda context: 1) as worker:
            job = await broker.add("ok")
            await broker.until(lambda: job.result.json == "1")
            await eventually(lambda: worker.stats.succeeded == 1, "it counts there too")
    assert "no worker streams" in caplog.text


def test_values_out_of_range_are_refused() -> None:
    for arguments in (
        {"transport": "smoke"},
        {"prefetch": -1},
        {"prefetch": 9_991},
        {"credit_bytes": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            Worker(**arguments)  # type: ignore[arg-type]

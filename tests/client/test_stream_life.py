"""The worker on a stream: breaks, moves, drains and ends."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from jobwire import CallError, Context, Worker
from jobwire.v1 import worker_service_pb2 as pb

from tests.client.broker import reason, retry_info, rich_status
from tests.client.peer import (
    SUPERSEDED,
    SUPERSEDED_BY_ITSELF,
    Peer,
    Stream,
    holding,
    peer,
    streaming,
)
from tests.support.waiting import eventually

__all__ = ["peer"]

AWAY = rich_status(grpc.StatusCode.UNAVAILABLE, "away", reason("STORE_UNAVAILABLE"))


def names(leases: object) -> set[tuple[str, int]]:
    return {(lease.job_id, lease.fencing_token) for lease in leases}  # type: ignore[attr-defined]


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port where connections are made and nothing is ever said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


async def test_after_a_break_the_worker_names_what_it_holds_and_goes_on(peer: Peer) -> None:
    gate = asyncio.Event()
    async with streaming(peer, hold=holding(gate)) as worker:
        first = await peer.stream()
        jobs = first.assign("hold", "hold")
        for job in jobs:
            await first.started(job)
        first.end(AWAY)
        second = await peer.stream(1)
        gate.set()
        for job in jobs:
            assert (await second.completion(job)).fencing_token == 1
        await eventually(lambda: worker.stats.succeeded == 2, "both are recorded")
    assert names(second.attach.leases) == {(job, 1) for job in jobs}
    assert second.attach.instance_id == first.attach.instance_id
    assert second.attach.worker == first.attach.worker


async def test_a_completion_without_its_receipt_goes_first_on_the_next_stream(
    peer: Peer,
) -> None:
    peer.receipts = False
    async with streaming(peer, ok=lambda context: 1) as worker:
        first = await peer.stream()
        (job,) = first.assign("ok")
        await first.completion(job)
        peer.receipts = True
        first.end(AWAY)
        second = await peer.stream(1)
        assert (await second.completion(job)).success.result.json == "1"
        await eventually(lambda: worker.stats.succeeded == 1, "it is recorded")
    assert names(second.attach.leases) == {(job, 1)}
    assert second.frames[0].completions[0].job_id == job


async def test_a_report_without_its_receipt_comes_before_the_completion_there(
    peer: Peer,
) -> None:
    peer.receipts = False

    def report(context: Context) -> None:
        context.progress(0.5, "half")

    async with streaming(peer, report=report):
        first = await peer.stream()
        (job,) = first.assign("report")
        await first.started(job)
        peer.receipts = True
        first.end(AWAY)
        second = await peer.stream(1)
        await second.completion(job)
    assert [r.progress.message for r in second.reports] == ["half"]
    assert first.completions == []


async def test_leases_that_the_answer_calls_lost_are_stopped(peer: Peer) -> None:
    gate = asyncio.Event()
    async with streaming(peer, hold=holding(gate)) as worker:
        first = await peer.stream()
        kept, gone = first.assign("hold", "hold")
        for job in (kept, gone):
            await first.started(job)
        peer.lost = [pb.LeaseRef(job_id=gone, fencing_token=1)]
        first.end(AWAY)
        second = await peer.stream(1)
        await eventually(lambda: worker.stats.running == 1, "one handler is stopped")
        gate.set()
        await second.completion(kept)
    assert [c.job_id for c in second.completions] == [kept]


async def test_a_killed_server_is_left_for_another_address(peer: Peer) -> None:
    other = Peer()
    await other.start()
    gate = asyncio.Event()
    worker = streaming(peer, hold=holding(gate))
    worker.connect_to(f"{peer.target},{other.target}")
    async with worker:
        await eventually(lambda: bool(peer.streams or other.streams), "it is attached")
        near, far = (peer, other) if peer.streams else (other, peer)
        (job,) = near.streams[0].assign("hold")
        await near.streams[0].started(job)
        await near.stop()
        stream = await far.stream()
        assert names(stream.attach.leases) == {(job, 1)}
        gate.set()
        await stream.completion(job)
    await other.stop()


async def test_a_server_that_accepts_and_says_nothing_is_passed_over(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobwire.worker.transport.stream.FIRST_PATIENCE_S", 0.2)
    monkeypatch.setattr("random.sample", lambda found, count: list(found))
    with deaf_port() as port:
        worker = streaming(peer, ok=lambda context: 1)
        worker.connect_to(f"127.0.0.1:{port},{peer.target}")
        async with worker:
            stream = await peer.stream()
            (job,) = stream.assign("ok")
            await stream.completion(job)


async def test_a_refusal_for_now_is_tried_again(peer: Peer) -> None:
    await peer.stop()
    worker = streaming(peer, ok=lambda context: 1)
    starting = asyncio.create_task(worker.start())
    await asyncio.sleep(0)
    await peer.start()
    await starting
    stream = await peer.stream()
    stream.end(
        rich_status(
            grpc.StatusCode.UNAVAILABLE, "full", reason("SERVER_BUSY"), retry_info(seconds=0.01)
        )
    )
    await peer.stream(1)
    await worker.stop()


async def test_a_silent_stream_is_dropped_for_another(peer: Peer) -> None:
    peer.heartbeat_s = 0.1
    async with streaming(peer, ok=lambda context: 1):
        second = await peer.stream(1)
        (job,) = second.assign("ok")
        await second.completion(job)
    assert peer.streams[0].ended


async def test_a_worker_with_nothing_to_say_sends_heartbeats(peer: Peer) -> None:
    peer.heartbeat_s = 0.05
    async with streaming(peer, ok=lambda context: 1):
        stream = await peer.stream()

        def beats() -> int:
            return sum(frame.HasField("heartbeat") for frame in stream.frames)

        for wanted in range(1, 6):
            await peer.until(lambda wanted=wanted: beats() >= wanted)  # type: ignore[misc]
            stream.send(heartbeat=pb.Heartbeat())
    assert len(peer.streams) == 1


async def test_handlers_go_on_without_a_server_until_their_leases_are_surely_gone(
    peer: Peer,
) -> None:
    peer.window_s = 0.5
    stopped = asyncio.Event()

    async def hold(context: Context) -> None:
        context.progress(None, "started")
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    worker = streaming(peer, hold=hold)
    worker.shutdown_grace_s = 0
    await worker.start()
    stream = await peer.stream()
    (job,) = stream.assign("hold")
    await stream.started(job)
    before = asyncio.get_running_loop().time()
    await peer.stop()
    async with asyncio.timeout(10):
        await stopped.wait()
    assert asyncio.get_running_loop().time() - before >= 0.4
    assert worker.stats.lost == 1
    await worker.stop()


def drain(*, leave: bool) -> pb.Drain:
    deadline = Timestamp()
    deadline.GetCurrentTime()
    deadline.seconds += 60
    return pb.Drain(deadline=deadline, leave=leave, reason="because")


async def test_a_drained_stream_is_left_once_another_one_is_attached(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobwire.worker.transport.stream.FIRST_PATIENCE_S", 0.3)
    gate = asyncio.Event()
    async with streaming(peer, hold=holding(gate), ok=lambda context: 1):
        first = await peer.stream()
        (job,) = first.assign("hold")
        await first.started(job)
        peer.answers = False
        first.send(drain=drain(leave=False))
        second = await peer.stream(1)
        assert names(second.attach.leases) == {(job, 1)}
        # The second one has no answer yet, so the first goes on.
        gate.set()
        await first.completion(job)
        assert not first.ended
        peer.answers = True
        third = await peer.stream(2)
        (after,) = third.assign("ok")
        await third.completion(after)
        await eventually(lambda: first.ended, "the drained stream is let go")


async def test_what_a_drained_stream_brings_after_the_attachment_is_left_alone(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobwire.worker.transport.stream.FIRST_PATIENCE_S", 0.3)
    began: list[str] = []

    async def note(context: Context) -> None:
        began.append(context.job_id)

    async with streaming(peer, note=note):
        first = await peer.stream()
        peer.answers = False
        first.send(drain=drain(leave=False))
        await peer.stream(1)
        first.assign("note")
        peer.answers = True
        third = await peer.stream(2)
        (job,) = third.assign("note")
        await third.completion(job)
    assert began == [job]
    assert first.arrived == []


async def test_a_worker_asked_to_leave_finishes_its_jobs_and_ends(peer: Peer) -> None:
    gate = asyncio.Event()
    worker = streaming(peer, hold=holding(gate))
    worker.concurrency, worker.prefetch, worker.shutdown_grace_s = 1, 1, 0
    serving = asyncio.create_task(worker.serve())
    stream = await peer.stream()
    running, waiting = stream.assign("hold", "hold")
    await stream.started(running)
    stream.send(drain=drain(leave=True))
    assert (await stream.completion(waiting)).released.not_started
    await peer.until(lambda: stream.credits == 0)
    gate.set()
    async with asyncio.timeout(10):
        await serving
    assert (await stream.completion(running)).HasField("success")
    assert stream.frames[-1].HasField("detach")
    assert len(peer.streams) == 1


async def test_a_worker_that_is_said_to_supersede_itself_attaches_again_and_keeps_its_jobs(
    peer: Peer,
) -> None:
    """As after a failover to a store that knows an older stream of its only."""
    gate = asyncio.Event()
    async with streaming(peer, hold=holding(gate)):
        first = await peer.stream()
        (job,) = first.assign("hold")
        await first.started(job)
        first.end(SUPERSEDED_BY_ITSELF)
        second = await peer.stream(1)
        gate.set()
        await second.completion(job)
    assert names(second.attach.leases) == {(job, 1)}
    assert second.attach.attempt > first.attach.attempt > 0


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    ],
)
async def test_what_a_proxy_says_while_it_is_switched_ends_no_worker(
    peer: Peer, code: grpc.StatusCode
) -> None:
    gate = asyncio.Event()
    async with streaming(peer, hold=holding(gate)):
        first = await peer.stream()
        (job,) = first.assign("hold")
        await first.started(job)
        peer.turned_away = [rich_status(code, "Received http2 header with status: 404")] * 3
        first.end(peer.turned_away.pop())
        second = await peer.stream(1)
        assert not peer.turned_away
        gate.set()
        await second.completion(job)
    assert names(second.attach.leases) == {(job, 1)}


async def test_a_superseded_worker_stops_its_handlers_and_ends_with_the_reason(
    peer: Peer,
) -> None:
    stopped = threading.Event()

    def wait(context: Context) -> None:
        context.progress(None, "started")
        context.wait_cancelled(30)
        stopped.set()

    worker = streaming(peer, wait=wait)
    serving = asyncio.create_task(worker.serve())
    stream = await peer.stream()
    (job,) = stream.assign("wait")
    await stream.started(job)
    stream.end(SUPERSEDED)
    async with asyncio.timeout(10):
        with pytest.raises(CallError) as raised:
            await serving
    assert raised.value.reason == "SUPERSEDED"
    assert stopped.is_set()
    assert len(peer.streams) == 1


async def test_a_refused_attachment_is_raised(peer: Peer) -> None:
    class Refusing(Peer):
        async def Work(self, requests: object, context: object) -> None:  # noqa: N802
            await context.abort(*rich_status(grpc.StatusCode.INVALID_ARGUMENT, "no"))  # type: ignore[attr-defined]

    refusing = Refusing()
    await refusing.start()
    with pytest.raises(CallError, match="no"):
        await streaming(refusing, ok=lambda context: 1).start()
    await refusing.stop()


async def leave(peer: Peer, worker: Worker, *jobs: str) -> tuple[Stream, list[str]]:
    """Attach a worker and start its jobs."""
    await worker.start()
    stream = await peer.stream()
    return stream, stream.assign(*jobs)


async def test_a_stopped_worker_gives_back_what_has_not_begun_and_finishes_the_rest(
    peer: Peer,
) -> None:
    gate = asyncio.Event()
    worker = streaming(peer, hold=holding(gate))
    worker.concurrency, worker.prefetch = 1, 2
    stream, (running, *waiting) = await leave(peer, worker, "hold", "hold", "hold")
    await stream.started(running)
    stopping = asyncio.create_task(worker.stop())
    for job in waiting:
        assert (await stream.completion(job)).released.not_started
    await peer.until(lambda: any(f.status == pb.WORKER_STATUS_DRAINING for f in stream.frames))
    assert stream.credits == 0
    (late,) = stream.assign("hold")
    assert (await stream.completion(late)).released.not_started
    gate.set()
    await stopping
    assert (await stream.completion(running)).HasField("success")
    assert stream.frames[-1].HasField("detach")
    assert (worker.stats.succeeded, worker.stats.released) == (1, 3)


async def test_what_does_not_end_in_the_grace_is_released_as_interrupted(peer: Peer) -> None:
    worker = streaming(peer, hold=holding(asyncio.Event()))
    worker.shutdown_grace_s = 0.05
    stream, (job,) = await leave(peer, worker, "hold")
    await stream.started(job)
    await worker.stop()
    said = await stream.completion(job)
    assert said.HasField("released")
    assert not said.released.not_started


async def test_the_goodbye_waits_for_the_receipts(peer: Peer) -> None:
    peer.receipts = False
    worker = streaming(peer, ok=lambda context: 1)
    stream, (job,) = await leave(peer, worker, "ok")
    await stream.completion(job)
    stopping = asyncio.create_task(worker.stop())
    await peer.until(lambda: any(f.status == pb.WORKER_STATUS_DRAINING for f in stream.frames))
    assert not any(frame.HasField("detach") for frame in stream.frames)
    sequence = next(frame.sequence for frame in stream.frames if frame.completions)
    stream.send(receipts=[pb.Receipt(sequence=sequence)])
    await stopping
    assert stream.frames[-1].HasField("detach")
    assert worker.stats.succeeded == 1


async def test_a_worker_stops_though_no_server_is_left(peer: Peer) -> None:
    worker = streaming(peer, ok=lambda context: 1)
    await leave(peer, worker)
    await peer.stop()
    async with asyncio.timeout(10):
        await worker.stop()

"""Handlers are stopped by the clock: at their execution timeout, or the job's deadline."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobwire import Context, Worker
from jobwire.v1 import worker_service_pb2 as pb
from jobwire.v1.job_pb2 import JobSpec
from jobwire.worker.limits import end_of

from tests.client import handlers
from tests.client.peer import Peer, peer, streaming

__all__ = ["peer"]

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def spec(timeout_s: float | None = None, deadline: datetime | None = None) -> JobSpec:
    made = JobSpec(operation="wait")
    if timeout_s is not None:
        made.execution_timeout.FromTimedelta(timedelta(seconds=timeout_s))
    if deadline is not None:
        made.deadline.FromDatetime(deadline)
    return made


def test_the_earlier_end_counts() -> None:
    noon_s = NOON.timestamp()
    assert end_of(spec(), noon_s) is None
    assert end_of(spec(5), noon_s) == (noon_s + 5, "timeout")
    assert end_of(spec(deadline=NOON), 0) == (noon_s, "deadline")
    assert end_of(spec(5, NOON), noon_s - 9) == (noon_s - 4, "timeout")
    assert end_of(spec(5, NOON), noon_s - 1) == (noon_s, "deadline")


def test_a_deadline_that_has_passed_when_the_job_comes_does_not_count() -> None:
    noon_s = NOON.timestamp()
    assert end_of(spec(deadline=NOON), noon_s + 1) is None
    assert end_of(spec(5, NOON), noon_s + 1) == (noon_s + 6, "timeout")


def assigned(peer: Peer, timeout_s: float | None, deadline: datetime | None) -> pb.Assignment:
    assignment = peer.new_job("wait")
    assignment.spec.CopyFrom(spec(timeout_s, deadline))
    return assignment


async def wait(context: Context) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("timeout_s", "lasts_s", "kind", "words"),
    [
        (0.5, 3600, "EXECUTION_TIMEOUT", "ran past its execution timeout of 0.5 s"),
        (3600, 1, "DEADLINE_EXCEEDED", "was not finished by its deadline"),
    ],
)
@pytest.mark.parametrize("function", [wait, handlers.wait_for_the_end])
async def test_a_handler_is_stopped_without_a_word_of_the_server(
    peer: Peer, timeout_s: float, lasts_s: float, kind: str, words: str, function: Any
) -> None:
    async with streaming(peer, wait=function):
        stream = await peer.stream()
        deadline = datetime.now(UTC) + timedelta(seconds=lasts_s)
        assignment = assigned(peer, timeout_s, deadline)
        stream.send(assignments=[assignment])
        failure = (await stream.completion(assignment.job_id)).failure
    assert (failure.type, failure.non_retryable) == (kind, False)
    assert words in failure.message
    assert f"in {function.__name__}\n" in failure.stack


@pytest.mark.processes
async def test_a_handler_in_a_process_is_stopped_too(peer: Peer) -> None:
    worker = Worker(peer.target, shutdown_grace_s=10, prefetch=0)
    worker.operation("wait", run="process")(handlers.wait_for_the_end)
    async with worker:
        stream = await peer.stream()
        assignment = assigned(peer, 0.2, None)
        stream.send(assignments=[assignment])
        failure = (await stream.completion(assignment.job_id)).failure
    assert failure.type == "EXECUTION_TIMEOUT"


async def test_a_handler_knows_its_deadline_and_why_it_was_stopped(peer: Peer) -> None:
    seen: list[object] = []

    async def look(context: Context) -> str:
        seen.append(context.deadline)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(context.stop_reason)
        return "in time after all"

    async with streaming(peer, wait=look):
        stream = await peer.stream()
        end = datetime.now(UTC) + timedelta(seconds=1)
        assignment = assigned(peer, None, end)
        stream.send(assignments=[assignment])
        said = await stream.completion(assignment.job_id)
    assert said.success.result.json == '"in time after all"'
    assert seen == [end, "deadline"]


async def test_a_job_whose_time_is_over_before_its_handler_begins_goes_back(peer: Peer) -> None:
    gate = asyncio.Event()

    async def hold(context: Context) -> None:
        await gate.wait()

    worker = Worker(peer.target, concurrency=1, prefetch=5, shutdown_grace_s=10)
    worker.operation("hold")(hold)
    worker.operation("wait")(wait)
    async with worker:
        stream = await peer.stream()
        stream.assign("hold")
        assignment = assigned(peer, 0.1, None)
        stream.send(assignments=[assignment])
        said = await stream.completion(assignment.job_id)
        gate.set()
    assert said.released.not_started


async def test_the_end_of_time_does_not_undo_a_cancellation(peer: Peer) -> None:
    over = asyncio.Event()

    async def slow_to_stop(context: Context) -> None:
        context.progress(None, "started")
        assert context.deadline is not None
        left_s = (context.deadline - datetime.now(UTC)).total_seconds()
        asyncio.get_running_loop().call_later(left_s + 0.05, over.set)
        try:
            await asyncio.Event().wait()
        finally:
            await over.wait()

    async with streaming(peer, wait=slow_to_stop):
        stream = await peer.stream()
        assignment = assigned(peer, 2, None)
        stream.send(assignments=[assignment])
        await stream.started(assignment.job_id)
        notice = pb.CancelNotice(job_id=assignment.job_id, fencing_token=1)
        stream.send(cancellations=[notice])
        assert (await stream.completion(assignment.job_id)).HasField("cancelled")


async def test_a_job_without_limits_has_no_deadline() -> None:
    assert Context.for_test().deadline is None
    assert Context.for_test(deadline=NOON).deadline == NOON

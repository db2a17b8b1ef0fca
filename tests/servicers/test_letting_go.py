"""What a failed call had sent goes with the call; nobody has to look for garbage."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from types import FrameType, TracebackType
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from jobwire.v1 import job_pb2, job_service_pb2, worker_service_pb2
from jobwire_server.servicers.letting_go import let_go

from tests.support.echo import SERVICE, serving
from tests.support.grpc_servers import LIMITS, Served, served_broker
from tests.support.waiting import eventually

LARGE = 1 << 20
KINDS = ("unary_unary", "unary_stream", "stream_stream")
PASS_S = 0.2
"""A deadline that passes on the way."""


@pytest.fixture(autouse=True)
def nobody_collects() -> Iterator[None]:
    """Nothing goes but by its last reference."""
    gc.collect()
    gc.freeze()  # what there was before is not looked through again and again
    gc.disable()
    yield
    gc.enable()


def _stays() -> list[str]:
    """Large messages that somebody holds. The client of a test sends bytes."""
    messages = (each for each in gc.get_objects() if isinstance(each, Message))
    return [type(each).__name__ for each in messages if each.ByteSize() >= LARGE // 2]


def _circles() -> list[str]:
    """What of failures only the collector finds."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return [
            repr(each)[:200]
            for each in gc.garbage
            if isinstance(each, FrameType | TracebackType | BaseException)
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


async def _goes(call: Callable[[], Awaitable[str]], code: str) -> None:
    """Fails unless a call ends so, and then nothing of it is left."""
    assert await call() == code
    await eventually(lambda: not _stays(), "what the call sent has gone")


async def _code(
    channel: grpc.aio.Channel, kind: str, path: str, frames: list[bytes], how: str, **kwargs: Any
) -> str:
    """Makes a call of bytes; returns its status."""
    request: Any = _each(frames) if kind.startswith("stream") else frames[0]
    call = getattr(channel, kind)(path)(request, **kwargs)
    if how == "cancelled":
        await asyncio.sleep(PASS_S)
        call.cancel()
    try:
        if kind == "unary_unary":
            await call
        else:
            async for _ in call:
                pass
    except asyncio.CancelledError:
        return "CANCELLED"
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def _each(frames: list[bytes]) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("fine", "OK"),
        ("missing", "NOT_FOUND"),
        ("down", "UNAVAILABLE"),
        ("defect", "INTERNAL"),
        ("abort", "DATA_LOSS"),
        ("unwritten", "UNIMPLEMENTED"),
        ("unreadable", "INVALID_ARGUMENT"),
        ("draining", "UNAVAILABLE"),
        ("late", "DEADLINE_EXCEEDED"),
        ("cancelled", "CANCELLED"),
    ],
)
async def test_a_large_request_goes_with_its_call(kind: str, what: str, code: str) -> None:
    name = {"unary_unary": "Unary", "unary_stream": "Stream", "stream_stream": "Both"}[kind]
    word = "forever" if what in ("late", "cancelled") else what
    data = StringValue(value=f"{word} {'x' * LARGE}").SerializeToString()
    if what == "unreadable":
        data = b"\xff" * LARGE
    # The tests' own log would write a defect with all that its frames hold.
    with capture_logs():
        async with serving() as server:
            if what == "draining":
                server.interceptor.drain()
            late = {"timeout": PASS_S} if what == "late" else {}
            path = f"/{SERVICE}/{name}"
            async with grpc.aio.insecure_channel(server.address) as channel:
                await _goes(lambda: _code(channel, kind, path, [data], what, **late), code)
            assert _circles() == []


@pytest.fixture
async def roomy(valkey_url: str) -> AsyncIterator[Served]:
    """A server that takes large requests, and refuses the largest payloads."""
    limits = replace(LIMITS, max_payload_bytes=LARGE - 1, max_message_bytes=8 << 20)
    async with served_broker(valkey_url, limits) as running:
        yield running


def _submit(size: int) -> job_service_pb2.SubmitJobRequest:
    payload = job_pb2.Payload(json='"' + "x" * size + '"')
    return job_service_pb2.SubmitJobRequest(spec=job_pb2.JobSpec(operation="a", payload=payload))


def _padded(message: Message) -> bytes:
    """A message with a large field that nobody knows."""
    return message.SerializeToString() + b"\xfa\x7f\x80\x80\x40" + b"x" * LARGE


WORKER = worker_service_pb2.WorkerSpec(worker_id="w-1", queues=["default"], operations=["a"])
GONE = "default-01j00000000000000000000000"
Path = tuple[str, str, list[bytes], str, str]


def _calls() -> Iterator[Path]:
    """Kind, method, request, how it ends, status."""
    jobs, workers = "jobwire.v1.JobService", "jobwire.v1.WorkerService"
    run = job_service_pb2.RunJobRequest
    large, fits = _submit(LARGE), _submit(LARGE - 1_000)
    wait = duration_pb2.Duration(seconds=60)
    claim = worker_service_pb2.ClaimJobRequest(worker_id="w-1", wait=wait)
    frame = worker_service_pb2.WorkRequest
    attach = worker_service_pb2.Attach(instance_id="i-1", worker=WORKER)
    unfit, fit = large.SerializeToString(), fits.SerializeToString()
    yield "unary_unary", f"{jobs}/SubmitJob", [unfit], "", "INVALID_ARGUMENT"
    yield "unary_unary", f"{jobs}/SubmitJob", [fit], "", "OK"
    get = job_service_pb2.GetJobRequest(job_id=GONE)
    yield "unary_unary", f"{jobs}/GetJob", [_padded(get)], "", "NOT_FOUND"
    yield "unary_unary", f"{workers}/ClaimJob", [_padded(claim)], "late", "DEADLINE_EXCEEDED"
    yield "unary_unary", f"{workers}/ClaimJob", [_padded(claim)], "cancelled", "CANCELLED"
    watch = job_service_pb2.WatchJobRequest(job_id=GONE)
    yield "unary_stream", f"{jobs}/WatchJob", [_padded(watch)], "", "NOT_FOUND"
    unfit, fit = run(submit=large).SerializeToString(), run(submit=fits).SerializeToString()
    yield "unary_stream", f"{jobs}/RunJob", [unfit], "", "INVALID_ARGUMENT"
    yield "unary_stream", f"{jobs}/RunJob", [fit], "late", "DEADLINE_EXCEEDED"
    yield "unary_stream", f"{jobs}/RunJob", [fit], "cancelled", "CANCELLED"
    first, second = _padded(frame(attach=attach)), _padded(frame())
    yield "stream_stream", f"{workers}/Work", [second], "", "INVALID_ARGUMENT"
    unfit = frame(attach=worker_service_pb2.Attach(instance_id="i" * LARGE)).SerializeToString()
    yield "stream_stream", f"{workers}/Work", [unfit], "", "INVALID_ARGUMENT"
    yield "stream_stream", f"{workers}/Work", [first, b"\xff" * LARGE], "", "INVALID_ARGUMENT"
    yield "stream_stream", f"{workers}/Work", [first, unfit], "", "INVALID_ARGUMENT"
    yield "stream_stream", f"{workers}/Work", [first, second], "", "OK"
    said = job_service_pb2.ProduceRequest
    first = _padded(said(open=job_service_pb2.ProducerOpening(client="c-1")))
    unfit = said(open=job_service_pb2.ProducerOpening(client="c" * LARGE)).SerializeToString()
    yield "stream_stream", f"{jobs}/Produce", [_padded(said())], "", "INVALID_ARGUMENT"
    yield "stream_stream", f"{jobs}/Produce", [unfit], "", "INVALID_ARGUMENT"
    yield "stream_stream", f"{jobs}/Produce", [first, b"\xff" * LARGE], "", "INVALID_ARGUMENT"
    yield "stream_stream", f"{jobs}/Produce", [first, unfit], "", "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "path", [pytest.param(call, id=f"{call[1][11:]}-{call[4]}") for call in _calls()]
)
async def test_a_large_request_goes_with_a_call_of_the_contract(roomy: Served, path: Path) -> None:
    kind, method, frames, how, code = path
    if method.endswith("ClaimJob"):
        await roomy.workers.RegisterWorker(worker_service_pb2.RegisterWorkerRequest(worker=WORKER))
    late = {"timeout": PASS_S} if how == "late" else {}
    async with grpc.aio.insecure_channel(roomy.address) as channel:
        await _goes(lambda: _code(channel, kind, f"/{method}", frames, how, **late), code)


def test_an_error_lets_go_of_all_that_it_came_from() -> None:
    def fail() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            try:
                raise ValueError("second") from error
            except ValueError:
                raise TypeError("third")  # noqa: B904

    with pytest.raises(TypeError) as raised:
        fail()
    third = raised.value
    second = third.__context__
    assert isinstance(second, ValueError)
    first = second.__cause__
    let_go(third)
    errors = [third, second, first]
    assert [error.__traceback__ for error in errors if error] == [None] * 3
    assert not any(error.__cause__ or error.__context__ for error in errors if error)

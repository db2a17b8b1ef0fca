"""The SDK's worker with servers that are older than it, or newer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

import grpc
import pytest
from google.protobuf.message import Message

from jobwire import AsyncClient, Context, NotFound, Worker, to_payload
from jobwire.v1 import worker_service_pb2 as pb
from jobwire_server.domain.features import FEATURES
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.server_info import ServerFacts, StoreInfo
from jobwire_server.servicers import frames, generic_handlers
from jobwire_server.servicers.interceptor import CallInterceptor
from jobwire_server.telemetry.metrics import RpcMetrics

from tests.client.peer import Peer, peer, streaming
from tests.support.streams import QUICK, StreamServer, stream_server
from tests.support.waiting import eventually

__all__ = ["peer"]

Transport = Literal["stream", "unary"]
NEW = {
    "jobwire.v1.WorkerSpec": ("build_id",),
    "jobwire.v1.Attach": ("features",),
    "jobwire.v1.WorkRequest": ("credit_bytes", "status_metadata"),
    "jobwire.v1.UpdateWorkerStatusRequest": ("metadata", "instance_id"),
    "jobwire.v1.DeregisterWorkerRequest": ("instance_id",),
    "jobwire.v1.JobSpec": ("headers", "required_features"),
    "jobwire.v1.Payload": ("metadata",),
    "jobwire.v1.HeartbeatResponse": ("drain",),
    "jobwire.v1.Worker": ("free", "status_metadata"),
}
"""What a server of the first version does not know; it keeps none of it."""


def forget(message: Message) -> Message:
    """Takes out of a message what an older server does not know."""
    for name in NEW.get(message.DESCRIPTOR.full_name, ()):
        message.ClearField(name)
    if isinstance(message, pb.UpdateWorkerStatusRequest) and not message.status:
        message.status = -1  # type: ignore[assignment]  # which it refused, as it did no status
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for part in value if field.is_repeated else [value]:
            forget(part)
    return message


class Older(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets a server see of requests what an older one would."""

    async def intercept_service(self, proceed: Any, details: Any) -> Any:
        handler = await proceed(details)
        read = handler.request_deserializer

        def older(data: bytes) -> Any:
            return forget(read(data))

        kind = (handler.request_streaming, handler.response_streaming)
        make = {
            (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
            (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
        }[kind]
        return make[0](
            make[1],
            request_deserializer=older,
            response_serializer=handler.response_serializer,
        )


@asynccontextmanager
async def _older(
    url: str, monkeypatch: pytest.MonkeyPatch, options: BrokerOptions = QUICK
) -> AsyncIterator[str]:
    monkeypatch.setattr(frames, "FEATURES", ())
    async with stream_server(url, options) as server:
        old = grpc.aio.server(interceptors=(CallInterceptor(RpcMetrics()), Older()))
        facts = ServerFacts("s1", "0", 0, StoreInfo("valkey", "0", ""), options.limits)
        old.add_generic_rpc_handlers(tuple(generic_handlers(server.router, facts)))
        port = old.add_insecure_port("127.0.0.1:0")
        await old.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await old.stop(None)


def _worker(target: str, transport: Transport, **options: Any) -> Worker:
    worker = Worker(target, transport=transport, worker_id="w1", concurrency=3, **options)

    @worker.operation("double")
    async def double(context: Context) -> Any:
        return context.payload * 2

    return worker


async def _info(client: AsyncClient, condition: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(20):
        while True:
            with suppress(NotFound):  # between two streams
                info = await client.worker("w1")
                if condition(info):
                    return info
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("transport", ["stream", "unary"])
async def test_a_worker_tells_of_itself_and_of_its_build(
    valkey_url: str, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBWIRE_BUILD_ID", "4f2c1")
    async with stream_server(valkey_url) as server, AsyncClient(server.address) as client:
        worker = _worker(server.address, transport)
        worker.tell({"model": "none"})
        async with worker:
            info = await _info(client, lambda info: info.told == {"model": "none"})
            assert info.build_id == "4f2c1"
            assert info.free == 3 or transport == "stream"
            worker.tell({"model": "llama", "temperature": 71})
            await _info(client, lambda info: info.told == {"model": "llama", "temperature": "71"})
            worker.tell({})
            await _info(client, lambda info: info.told == {})


async def test_what_a_worker_tells_is_told_anew_on_another_stream(
    valkey_url: str,
) -> None:
    async with stream_server(valkey_url) as server, AsyncClient(server.address) as client:
        worker = _worker(server.address, "stream")
        worker.tell({"model": "llama"})
        async with worker:
            await _info(client, lambda info: info.told == {"model": "llama"})
            await _forget_worker(server)
            await _info(client, lambda info: info.told == {"model": "llama"})


async def _forget_worker(server: StreamServer) -> None:
    """Has the store lose what is known of the worker."""
    await server.parts.workers.remove("w1")


@pytest.mark.parametrize(
    ("entries", "error", "words"),
    [
        ({"": "x"}, ValueError, "key ''"),
        ({"x" * 64: "x"}, ValueError, "63 letters"),
        ({"x": "ü" * 129}, ValueError, "258 bytes"),
        ({"x": "\ud800"}, ValueError, "surrogate"),
        ({"x": None}, TypeError, "NoneType"),
        ({f"x{at}": "" for at in range(17)}, ValueError, "16 entries"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(entries: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        Worker().tell(entries)


def test_a_build_id_has_a_bound() -> None:
    with pytest.raises(ValueError, match="build_id has 129 bytes"):
        Worker(build_id="x" * 129)


@pytest.mark.parametrize("transport", ["stream", "unary"])
async def test_a_worker_works_on_an_older_server_and_says_what_is_missing(
    valkey_url: str,
    transport: Transport,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with _older(valkey_url, monkeypatch) as target, AsyncClient(target) as client:
        worker = _worker(target, transport, build_id="4f2c1")
        with caplog.at_level(logging.WARNING, "jobwire.worker"):
            async with worker:
                worker.tell({"model": "llama"})
                jobs = [await client.submit("double", at) for at in range(20)]
                assert [await job.result() for job in jobs] == [2 * at for at in range(20)]
                await eventually(
                    lambda: "'status_metadata'" in caplog.text, "it says what is missing"
                )
                assert (await client.worker("w1")).build_id == ""


async def test_an_attachment_names_what_the_worker_supports(peer: Peer) -> None:
    async with streaming(peer, add=lambda context: None):
        named = (await peer.stream()).attach.features
    assert sorted(named) == [*named]
    # The names are the contract's, and so the servers'.
    assert {"credit_bytes", "received", "status_metadata"} <= set(named) <= {*FEATURES}


# Newer servers ---------------------------------------------------------------------------

UNKNOWN = b"\xfa\x3e\x03new"
"""A field with a number that nobody uses."""


def newer(message: Message) -> Message:
    """Adds a field that nobody knows, to a message and to all parts of it."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for part in value if field.is_repeated else [value]:
            newer(part)
    message.MergeFromString(UNKNOWN)
    return message


async def test_fields_that_the_worker_does_not_know_are_ignored_in_every_part_of_a_frame(
    peer: Peer,
) -> None:
    async with streaming(peer, add=lambda context: sum(context.payload)):
        stream = await peer.stream()
        lost = pb.LeaseRef(job_id="default-nothing", fencing_token=4)
        newer(lost)
        (job,) = stream.assign("add", payload=to_payload([1, 2]))
        refused = pb.Refused(job_id="default-x", fencing_token=1)
        refused.error.code, refused.error.reason = 99, 999  # type: ignore[assignment]
        frame = pb.WorkResponse(
            lost_leases=[lost],
            receipts=[pb.Receipt(sequence=77, refused=[refused])],
            cancellations=[pb.CancelNotice(job_id="default-x", fencing_token=1)],
        )
        stream.outgoing.put_nowait(newer(frame))  # type: ignore[arg-type]
        stream.outgoing.put_nowait(newer(pb.WorkResponse()))  # type: ignore[arg-type]
        assert await stream.completion(job)
        drain = pb.WorkResponse(drain=pb.Drain(reason="the server shuts down"))
        stream.outgoing.put_nowait(newer(drain))  # type: ignore[arg-type]
        assert (await peer.stream(1)).attach.worker.worker_id

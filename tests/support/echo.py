"""A tiny service of every kind of method behind the server's interceptor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from jobwire_server.domain.errors import JobNotFound, StoreUnavailable
from jobwire_server.servicers.interceptor import CallInterceptor
from jobwire_server.telemetry.current_call import current_call
from jobwire_server.telemetry.metrics import RpcMetrics

SERVICE = "jobwire.test.Echo"


async def _act(value: str, context: Any) -> str:
    """Does what the first word says."""
    text = value.partition(" ")[0]
    if text == "missing":
        raise JobNotFound("q-1")
    if text == "down":
        raise StoreUnavailable("down")
    if text == "defect":
        raise ZeroDivisionError("secret")
    if text == "abort":
        await context.abort(grpc.StatusCode.DATA_LOSS, "by hand")
    if text == "unwritten":  # as generated servicers do
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        context.set_details("not yet")
        raise NotImplementedError
    if text == "forever":
        await asyncio.Event().wait()
    if text == "id":
        call = current_call()
        return call.request_id if call else "no call"
    return value


@dataclass
class Server:
    """The tiny service behind the interceptor under test."""

    interceptor: CallInterceptor
    metrics: RpcMetrics
    address: str
    channel: grpc.aio.Channel
    ended: list[str] = field(default_factory=list)

    def unary(self, text: str, **kwargs: Any) -> Any:
        return self._multi("unary_unary", "Unary")(StringValue(value=text), **kwargs)

    def stream(self, text: str, **kwargs: Any) -> Any:
        return self._multi("unary_stream", "Stream")(StringValue(value=text), **kwargs)

    def both(self, texts: list[str]) -> Any:
        return self._multi("stream_stream", "Both")(iter([StringValue(value=t) for t in texts]))

    def method(self, name: str) -> Any:
        return self.metrics.method(f"/{SERVICE}/{name}")

    def _multi(self, kind: str, name: str) -> Any:
        return getattr(self.channel, kind)(
            f"/{SERVICE}/{name}",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=StringValue.FromString,
        )


@asynccontextmanager
async def serving(*, log_all: bool = False) -> AsyncIterator[Server]:
    """Serves it."""
    metrics = RpcMetrics()
    interceptor = CallInterceptor(metrics, log_all=log_all)
    server = grpc.aio.server(interceptors=(interceptor,))
    ended: list[str] = []

    async def unary(request: StringValue, context: Any) -> StringValue:
        return StringValue(value=await _act(request.value, context))

    async def stream(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        try:
            yield StringValue(value="first")
            yield StringValue(value=await _act(request.value, context))
        finally:
            ended.append(request.value)

    async def both(requests: AsyncIterator[StringValue], context: Any) -> None:
        async for request in requests:
            await context.write(StringValue(value=await _act(request.value, context)))

    codec: dict[str, Any] = {
        "request_deserializer": StringValue.FromString,
        "response_serializer": StringValue.SerializeToString,
    }
    handlers: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary, **codec),
        "Stream": grpc.unary_stream_rpc_method_handler(stream, **codec),
        "Both": grpc.stream_stream_rpc_method_handler(both, **codec),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(address) as channel:
        yield Server(interceptor, metrics, address, channel, ended)
    await server.stop(None)

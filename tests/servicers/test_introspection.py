"""The services beside ours: health, reflection and channelz, and bytes that are no message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_channelz.v1 import channelz_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]
from structlog.testing import capture_logs

from jobwire_server.servicers.interceptor import CallInterceptor
from jobwire_server.servicers.introspection import CHANNELZ, REFLECTION_V1, add_introspection
from jobwire_server.telemetry.metrics import RpcMetrics

V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
NO_MESSAGE = [b"\xff\xff", b"\x0a\x05abc", b"\x0b", b"\xff" * 600_000]


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server that has these services alone."""
    server = grpc.aio.server(interceptors=(CallInterceptor(RpcMetrics()),))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    add_introspection(server, (health.SERVICE_NAME,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    await server.stop(None)


async def _reflect(channel: grpc.aio.Channel, service: str, data: bytes) -> Any:
    call: Any = channel.stream_stream(f"/{service}/ServerReflectionInfo")()
    await call.write(data)
    await call.done_writing()
    return reflection_pb2.ServerReflectionResponse.FromString(await call.read())


@pytest.mark.parametrize("service", [REFLECTION_V1, V1ALPHA])
async def test_reflection_tells_of_itself_in_both_versions(
    channel: grpc.aio.Channel, service: str
) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = await _reflect(channel, service, request.SerializeToString())
    names = {one.name for one in answer.list_services_response.service}
    assert {service, CHANNELZ, health.SERVICE_NAME} <= names
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
    answer = await _reflect(channel, service, request.SerializeToString())
    (data,) = answer.file_descriptor_response.file_descriptor_proto
    file = descriptor_pb2.FileDescriptorProto.FromString(data)
    assert f"{file.package}.{file.service[0].name}" == service
    assert file.service[0].method[0].input_type == f".{file.package}.ServerReflectionRequest"


async def test_bytes_that_are_no_message_are_refused_without_a_traceback(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with capture_logs() as lines:
        for data in NO_MESSAGE:
            calls: list[Any] = [
                channel.unary_unary("/grpc.health.v1.Health/Check")(data),
                channel.unary_unary(f"/{CHANNELZ}/GetServers")(data),
                channel.unary_unary(f"/{CHANNELZ}/GetSocket")(data),
                _reflect(channel, REFLECTION_V1, data),
                _reflect(channel, V1ALPHA, data),
                channel.unary_stream("/grpc.health.v1.Health/Watch")(data).read(),
            ]
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not any("exc_info" in line for line in lines)
    assert not caplog.records, "the library has nothing to say"


@pytest.mark.parametrize("number", [-1, -(2**63), 1, 2**63 - 1])
async def test_channelz_refuses_numbers_that_it_does_not_know(
    channel: grpc.aio.Channel, number: int
) -> None:
    for method in channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].methods:
        request = getattr(channelz_pb2, method.input_type.name)()
        for field in method.input_type.fields:
            setattr(request, field.name, number)
        call = channel.unary_unary(f"/{CHANNELZ}/{method.name}")
        asked = call(request.SerializeToString())
        code = (await asked.code()).name
        asked.cancel()
        assert code in (("INVALID_ARGUMENT",) if number < 0 else ("OK", "NOT_FOUND"))

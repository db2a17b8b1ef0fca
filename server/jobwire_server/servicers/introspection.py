"""What a server tells of itself by services that are not ours: reflection and channelz."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_channelz.v1 import channelz, channelz_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection,
    reflection_pb2,
)

from jobwire_server.servicers.reading import unreadable

MAX_CHANNELZ = 500
"""The most entries of one channelz answer, which is made in the event loop."""
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
CHANNELZ: str = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name
_ALPHA = "grpc.reflection.v1alpha"


def add_introspection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Serve channelz, and reflection as v1 and as v1alpha.

    Args:
        server: Not yet started.
        services: The other services that it has.
    """
    _add_v1_descriptor()
    names = (*services, CHANNELZ, REFLECTION_V1, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    # The messages of v1 and v1alpha are the same on the wire, and the library has the older alone.
    answer = reflection.aio.ReflectionServicer(names).ServerReflectionInfo
    handler = grpc.stream_stream_rpc_method_handler(
        answer,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(CHANNELZ, _channelz_handlers()),
            grpc.method_handlers_generic_handler(REFLECTION_V1, {"ServerReflectionInfo": handler}),
        )
    )


@cache
def _add_v1_descriptor() -> None:
    """Let reflection describe itself as v1 too."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = "grpc.reflection.v1"
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(_ALPHA, file.package)
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(_ALPHA, file.package)
        method.output_type = method.output_type.replace(_ALPHA, file.package)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


def _channelz_handlers() -> dict[str, Any]:
    methods = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].methods
    return {
        method.name: grpc.unary_unary_rpc_method_handler(
            _checked(getattr(channelz.aio.ChannelzServicer, method.name)),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
        for method in methods
    }


def _checked(behave: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return a method of channelz for ids that it can look for: it answers others with INTERNAL."""

    async def call(request: Any, context: Any) -> Any:
        for field, value in request.ListFields():
            if value < 0:
                raise unreadable(field.name, "must not be negative")
        if hasattr(request, "max_results"):
            request.max_results = min(request.max_results or MAX_CHANNELZ, MAX_CHANNELZ)
        return await behave(request, context)

    return call

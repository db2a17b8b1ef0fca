"""The servicers: from the contract to the router and back, and nothing else.

Change here how a message becomes a value and a value a message, what is checked of a request by
itself, and which status an error has. Nothing here decides about a job: a method checks, asks the
router once, and converts the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from jobwire.v1 import (
    admin_service_pb2,
    job_service_pb2,
    schedule_service_pb2,
    worker_service_pb2,
)
from jobwire_server.broker.router import Router
from jobwire_server.domain.server_info import ServerFacts
from jobwire_server.servicers.admin_service import AdminService
from jobwire_server.servicers.job_service import JobService
from jobwire_server.servicers.schedule_service import ScheduleService
from jobwire_server.servicers.worker_service import WorkerService

_SERVICES: tuple[ServiceDescriptor, ...] = (
    job_service_pb2.DESCRIPTOR.services_by_name["JobService"],
    worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"],
    admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"],
    schedule_service_pb2.DESCRIPTOR.services_by_name["ScheduleService"],
)

SERVICE_NAMES: tuple[str, ...] = tuple(service.full_name for service in _SERVICES)
"""The full names of the contract's services."""


def generic_handlers(router: Router, facts: ServerFacts) -> list[grpc.GenericRpcHandler]:
    """Return the handlers of every method of the contract, for a grpc.aio server."""
    limits = facts.limits
    servicers = (
        JobService(router, limits),
        WorkerService(router, limits),
        AdminService(router, facts),
        ScheduleService(router, limits),
    )
    return [
        grpc.method_handlers_generic_handler(
            service.full_name,
            {
                method.name: _handler(method, getattr(servicer, method.name))
                for method in service.methods
            },
        )
        for service, servicer in zip(_SERVICES, servicers, strict=True)
    ]


def _serialize(answer: Message | bytes) -> bytes:
    # Watch streams come as bytes that all watchers share.
    return answer if type(answer) is bytes else answer.SerializeToString()  # type: ignore[union-attr]


# Taken from the descriptors rather than from the generated registration, because answers may be
# messages of `wire`, which the generated code's serializers refuse.
def _handler(
    method: MethodDescriptor, behaviour: Callable[..., Any]
) -> grpc.RpcMethodHandler[Any, Any]:
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    message = GetMessageClass(method.input_type)
    return make(behaviour, request_deserializer=message.FromString, response_serializer=_serialize)

"""What can be called: every method of every service that a server offers, found in descriptors."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

import grpc_reflection  # type: ignore[import-untyped]
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_channelz.v1 import channelz_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from jobwire import v1

OWN = "jobwire."
"""How the contract's own names begin: what the server promises of a status holds for these."""
ALIKE = {"grpc.reflection.v1alpha.ServerReflection": ("grpc.reflection.v1.ServerReflection",)}
"""Services that have the same messages under other names."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method that can be called."""

    name: str
    """For example ``jobwire.v1.JobService/SubmitJob``."""
    request: type[Message]
    answer: type[Message]
    streams_in: bool
    streams_out: bool

    @property
    def path(self) -> str:
        """As a call names it."""
        return f"/{self.name}"

    @property
    def short(self) -> str:
        """Without its service."""
        return self.name.rpartition("/")[2]

    @property
    def own(self) -> bool:
        """It is of the contract."""
        return self.name.startswith(OWN)


def methods() -> dict[str, Method]:
    """Return every method by its name, in an order that does not change."""
    found = [
        Method(
            f"{name}/{method.name}",
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
            method.client_streaming,
            method.server_streaming,
        )
        for service in _services()
        for name in (service.full_name, *ALIKE.get(service.full_name, ()))
        for method in service.methods
    ]
    return {method.name: method for method in sorted(found, key=lambda method: method.name)}


def _services() -> list[ServiceDescriptor]:
    modules: list[Any] = [health_pb2, channelz_pb2]
    for package in (v1, grpc_reflection):
        modules += [
            importlib.import_module(module.name)
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
            if module.name.endswith("_pb2")
        ]
    return [
        service for module in modules for service in module.DESCRIPTOR.services_by_name.values()
    ]

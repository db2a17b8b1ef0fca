"""The contract over a real channel: a server in this process, on a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from jobwire.v1 import (
    admin_service_pb2_grpc,
    job_service_pb2_grpc,
    schedule_service_pb2_grpc,
    worker_service_pb2_grpc,
)
from jobwire_server.domain.options import Limits
from jobwire_server.domain.server_info import ServerFacts, StoreInfo
from jobwire_server.servicers import generic_handlers
from jobwire_server.servicers.interceptor import CallInterceptor
from jobwire_server.telemetry.metrics import RpcMetrics

from tests.support.brokers import QUIET, Broker, running_broker

LIMITS = Limits(
    max_payload_bytes=1_000, max_result_bytes=500, max_batch_jobs=10, max_message_bytes=64 << 10
)


@dataclass
class Served:
    """A broker behind gRPC, and a client of it."""

    broker: Broker
    address: str
    jobs: Any
    workers: Any
    admin: Any
    schedules: Any


@asynccontextmanager
async def served_broker(url: str, limits: Limits = LIMITS) -> AsyncIterator[Served]:
    """Serves the contract on the store, with small limits and no loops of its own."""
    options = replace(QUIET, limits=limits)
    async with running_broker(url, options) as broker:
        store = StoreInfo("valkey", "9.1.0", "aof everysec")
        facts = ServerFacts("s1", "0.0.0", 1_000, store, limits)
        server = grpc.aio.server(
            interceptors=(CallInterceptor(RpcMetrics()),),
            options=(("grpc.max_receive_message_length", limits.max_message_bytes),),
        )
        server.add_generic_rpc_handlers(tuple(generic_handlers(broker.router, facts)))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        address = f"127.0.0.1:{port}"
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                yield Served(
                    broker,
                    address,
                    job_service_pb2_grpc.JobServiceStub(channel),
                    worker_service_pb2_grpc.WorkerServiceStub(channel),
                    admin_service_pb2_grpc.AdminServiceStub(channel),
                    schedule_service_pb2_grpc.ScheduleServiceStub(channel),
                )
        finally:
            await broker.router.drain()
            await server.stop(1)


@dataclass
class Refused:
    """An error status with its details unpacked."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    violations: dict[str, str]
    """Field -> description."""
    retry_after_ms: int | None
    resource: tuple[str, str] | None

    @property
    def fields(self) -> set[str]:
        return {*self.violations}


def refused(error: grpc.aio.AioRpcError) -> Refused:
    """Unpacks what a refused call was answered with."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    found: dict[str, Any] = {}
    for packed in status.details:
        kind = packed.type_url.rsplit(".", 1)[1]
        message = getattr(error_details_pb2, kind)()
        assert packed.Unpack(message)
        found[kind] = message
    info = found["ErrorInfo"]
    assert info.domain == "jobwire"
    assert info.metadata["request_id"]
    retry, resource = found.get("RetryInfo"), found.get("ResourceInfo")
    bad = found.get("BadRequest")
    violations = [(one.field, one.description) for one in bad.field_violations] if bad else []
    assert len(violations) == len(dict(violations)), "one violation for each field"
    return Refused(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason,
        metadata=dict(info.metadata),
        violations=dict(violations),
        retry_after_ms=retry.retry_delay.ToMilliseconds() if retry else None,
        resource=(resource.resource_type, resource.resource_name) if resource else None,
    )


async def refusal(call: Any) -> Refused:
    """Makes a unary call or reads a stream to its end; returns how it was refused."""
    try:
        if hasattr(call, "read"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return refused(error)
    raise AssertionError("the call was not refused")


async def eventually_answered(
    call: Callable[[], Awaitable[Any]], *, timeout_s: float = 20.0
) -> Any:
    """Repeats a call that is UNAVAILABLE until it is answered."""
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.05)

"""The two servers that are compared: Jobwire, and a bare echo with messages of the same size."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from benchmarks.parts import module
from benchmarks.processes import check_alive, cpu_s, free_port, resident_bytes, running, until
from benchmarks.stores import Store

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # Without it, channels of one process to one address share a connection.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class Server:
    """A gRPC server that runs in a process of its own."""

    address: str
    pid: int

    def channel(self) -> grpc.aio.Channel:
        """Returns a new connection; the caller closes it."""
        return grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)

    def cpu_s(self) -> float:
        """Returns the CPU time that its process has used, in seconds."""
        return cpu_s(self.pid)

    def resident_bytes(self) -> int:
        """Returns the memory that its process occupies; 0 where /proc does not tell."""
        return resident_bytes(self.pid)


@contextlib.asynccontextmanager
async def open_broker(
    store: Store, *options: str, profile: Path | None = None, trace: Path | None = None
) -> AsyncIterator[Server]:
    """Runs `jobwire serve` on the store for as long as the context lasts.

    Args:
        store: Where it keeps its jobs.
        options: Further options of `jobwire serve`.
        profile: The file to write a profile to; None: it is not profiled.
        trace: The file to write moments to; None: they are not noted.
    """
    port = free_port()
    where = ("--listen", f"127.0.0.1:{port}", "--http-listen", "", "--redis-url", store.url)
    command = module("jobwire.cli", "serve", *where, *options, profile=profile, trace=trace)
    async with _serving(command, port) as server:
        yield server


@contextlib.asynccontextmanager
async def open_echo(answer_bytes: int) -> AsyncIterator[Server]:
    """Runs the bare server for as long as the context lasts.

    Args:
        answer_bytes: The size of its answers, whatever it is asked.
    """
    port = free_port()
    command = module("benchmarks.echo", port, answer_bytes)
    async with _serving(command, port) as server:
        yield server


@contextlib.asynccontextmanager
async def open_bare_streams(answer_bytes: int) -> AsyncIterator[Server]:
    """Runs the bare server of streams for as long as the context lasts.

    Args:
        answer_bytes: The size of what its streams are told.
    """
    port = free_port()
    command = module("benchmarks.streaming", port, answer_bytes)
    async with _serving(command, port) as server:
        yield server


@contextlib.asynccontextmanager
async def _serving(command: tuple[str, ...], port: int) -> AsyncIterator[Server]:
    with tempfile.TemporaryDirectory(prefix="jwb-") as folder:
        log = Path(folder) / "log"
        async with running(command, log) as process:
            server = Server(f"127.0.0.1:{port}", process.pid)

            async def answers() -> bool:
                check_alive(process, log)
                async with server.channel() as channel:
                    stub = health_pb2_grpc.HealthStub(channel)
                    try:
                        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
                    except grpc.aio.AioRpcError:
                        return False
                    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

            await until(answers, "the server answers")
            yield server

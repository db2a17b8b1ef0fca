"""The yardstick: the least that a grpc.aio server can do for a unary call.

`python -m benchmarks.echo PORT ANSWER_BYTES` answers its one method with the same bytes each
time. It parses nothing, and has the same event loop as Jobwire.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2_grpc  # type: ignore[import-untyped]

from jobwire.v1 import job_service_pb2

METHOD = "/benchmarks.Echo/Echo"


async def serve(port: int, answer: bytes) -> None:
    """Serves until SIGTERM."""

    async def echo(request: bytes, context: object) -> bytes:
        return answer

    server = grpc.aio.server(
        options=(("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", 100_000))
    )
    _, service, method = METHOD.split("/")
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    await server.stop(None)


def answer_of(size: int) -> bytes:
    """Returns a SubmitJobResponse of so many bytes, 3 to 129."""
    return job_service_pb2.SubmitJobResponse(job_id="x" * (size - 2)).SerializeToString()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), answer_of(int(sys.argv[2]))))

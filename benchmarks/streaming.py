"""The yardstick for streams: the least that a grpc.aio server can do for many that wait.

`python -m benchmarks.streaming PORT ANSWER_BYTES` answers Watch (server stream) with some bytes at
once, and again whenever Tell (unary) is called with the same request. It parses nothing.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2_grpc  # type: ignore[import-untyped]

SERVICE = "benchmarks.Streaming"
WATCH = f"/{SERVICE}/Watch"
TELL = f"/{SERVICE}/Tell"


class Bare:
    """Streams that wait for news.

    Args:
        answer: What each is told.
    """

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._news: dict[bytes, asyncio.Event] = {}

    async def watch(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        """Tells the caller at once, and again at each news."""
        while True:
            yield self._answer
            await self._news.setdefault(request, asyncio.Event()).wait()

    async def tell(self, request: bytes, context: object) -> bytes:
        """Tells all who wait with the same request."""
        self._news.pop(request, asyncio.Event()).set()
        return b""


async def serve(port: int, answer: bytes) -> None:
    """Serves until SIGTERM."""
    bare = Bare(answer)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Watch": grpc.unary_stream_rpc_method_handler(bare.watch),
        "Tell": grpc.unary_unary_rpc_method_handler(bare.tell),
    }
    server = grpc.aio.server(
        options=(("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", 100_000))
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), b"\n" * int(sys.argv[2])))

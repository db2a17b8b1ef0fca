"""How gRPC serves with the options of a server."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from jobwire_server.domain.options import Limits
from jobwire_server.host import grpc_options


@pytest.mark.parametrize("sent", [b"", b"PRI * HTTP", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_connection_that_never_begins_is_closed(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(grpc_options, "HANDSHAKE_MS", 200)
    options = grpc_options.server_options(Limits(), shared_port=False)
    server = grpc.aio.server(options=options)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(20):
            while await reader.read(1_000):
                pass
        writer.close()
    finally:
        await server.stop(None)

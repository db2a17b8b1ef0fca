"""An HTTP/2 proxy that does to gRPC what proxies do: resets quiet streams, answers in its own name.

Frames are passed on as they are, save for those that it makes; headers are never decoded.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from types import TracebackType

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """Spells a frame."""
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


async def _read_frame(reader: asyncio.StreamReader) -> tuple[int, int, int, bytes]:
    head = await reader.readexactly(9)
    length = int.from_bytes(head[:3], "big")
    kind, flags, stream = struct.unpack(">BBI", head[3:])
    return kind, flags, stream & 0x7FFFFFFF, await reader.readexactly(length)


class Gateway:
    """Stands before one address. Use it as a context manager.

    Args:
        target: HOST:PORT.
        port: To listen on; 0: a free one.
        host: To listen at.
    """

    def __init__(self, target: str, port: int = 0, host: str = "127.0.0.1") -> None:
        self.target = target
        self.address = ""
        """HOST:PORT to connect to."""
        self.status = 0
        """While it is set, calls are answered with this HTTP status and get no further."""
        self.answered = 0
        """Calls that were answered so."""
        self.resets = 0
        """Streams that were reset."""
        self.connections = 0
        """Connections so far."""
        self._host, self._port = host, port
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def reset_streams(self, code: int = 2) -> None:
        """Resets every stream that is open, on both sides, as if it had been quiet too long.

        Args:
            code: Of HTTP/2: 0 NO_ERROR, 2 INTERNAL_ERROR, 7 REFUSED_STREAM, 8 CANCEL.
        """
        for connection in [*self._open]:
            self.resets += connection.reset_streams(code)

    @property
    def streams(self) -> int:
        """Streams that are open now."""
        return sum(len(connection.streams) for connection in self._open)

    async def __aenter__(self) -> Gateway:
        self._server = await asyncio.start_server(self._accept, self._host, self._port)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        # What was accepted just now takes some turns to begin.
        for _ in range(20):
            await asyncio.sleep(0)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        connection = _Connection(self, reader, writer)
        self._open.add(connection)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await connection.run()
        finally:
            self._open.discard(connection)
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()


class _Connection:
    def __init__(
        self, gateway: Gateway, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.streams: set[int] = set()
        self._gateway = gateway
        self._reader, self._writer = reader, writer
        self._up: asyncio.StreamWriter | None = None

    def reset_streams(self, code: int) -> int:
        assert self._up is not None or not self.streams
        count = len(self.streams)
        for stream in sorted(self.streams):
            self._writer.write(frame(RST_STREAM, 0, stream, struct.pack(">I", code)))
            if self._up is not None:
                self._up.write(frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))
        self.streams.clear()
        return count

    async def run(self) -> None:
        if await self._reader.readexactly(len(PREFACE)) != PREFACE:
            return
        if self._gateway.status:
            await self._answer()
            return
        host, _, port = self._gateway.target.rpartition(":")
        down, self._up = await asyncio.open_connection(host, int(port))
        self._up.write(PREFACE)
        ways = [
            asyncio.create_task(self._pass_on(self._reader, self._up, down=False)),
            asyncio.create_task(self._pass_on(down, self._writer, down=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._up.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, down: bool
    ) -> None:
        while True:
            kind, flags, stream, body = await _read_frame(reader)
            if not down and kind == HEADERS:
                if self._gateway.status:
                    # From now on this connection leads nowhere, as after a switch.
                    self._refuse(stream)
                    self._gateway.answered += 1
                    self._writer.write(frame(GOAWAY, 0, 0, struct.pack(">II", stream, 0)))
                    await self._writer.drain()
                    return
                self.streams.add(stream)
            # What still comes for a stream that was reset goes down all the same: trailers that
            # were left out would break the state of HPACK, and clients ignore them.
            writer.write(frame(kind, flags, stream, body))
            await writer.drain()
            ends = kind == RST_STREAM or (down and flags & END_STREAM and kind in (0, HEADERS))
            if ends:
                self.streams.discard(stream)

    def _refuse(self, stream: int) -> None:
        status = str(self._gateway.status).encode()
        # A literal under the name of entry 8 of the static table, :status; RFC 7541, 6.2.2.
        block = b"\x08" + bytes([len(status)]) + status
        self._writer.write(frame(HEADERS, END_HEADERS | END_STREAM, stream, block))

    async def _answer(self) -> None:
        """Speaks HTTP/2 itself, and answers every request with the status."""
        self._writer.write(frame(SETTINGS, 0, 0))
        reading = asyncio.create_task(_read_frame(self._reader))
        try:
            while self._gateway.status:
                await asyncio.wait({reading}, timeout=0.05)
                if not reading.done():
                    continue
                kind, flags, stream, body = reading.result()
                reading = asyncio.create_task(_read_frame(self._reader))
                if kind == SETTINGS and not flags & ACK:
                    self._writer.write(frame(SETTINGS, ACK, 0))
                elif kind == PING and not flags & ACK:
                    self._writer.write(frame(PING, ACK, 0, body))
                elif kind == HEADERS:
                    self._refuse(stream)
                    self._gateway.answered += 1
                await self._writer.drain()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        self._writer.write(frame(GOAWAY, 0, 0, struct.pack(">II", 0x7FFFFFFF, 0)))
        await self._writer.drain()

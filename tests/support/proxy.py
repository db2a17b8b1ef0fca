"""A TCP proxy that goes deaf: connections stay open and bytes vanish."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from types import TracebackType


class Proxy:
    """Passes connections on to one address. Use it as a context manager.

    Args:
        target: HOST:PORT, or the path of a socket.
        tls: What its side of the connections is encrypted with. None: nothing.
    """

    def __init__(self, target: str, *, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self._tls = tls
        self.address = ""
        """HOST:PORT to connect to."""
        self.accepted = 0
        """Connections so far."""
        self._open = asyncio.Event()
        self._open.set()
        self.held = b""
        """What waits to go up."""
        self._cut: dict[str, set[int]] = {"up": set(), "down": set()}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def swallow(self, *directions: str) -> None:
        """Lets what goes `up` (to the target) or `down` vanish, on the connections there are."""
        for direction in directions:
            self._cut[direction].update(range(self.accepted))

    def hold(self) -> None:
        """Keeps what goes up until `go_on`."""
        self._open.clear()

    def go_on(self) -> None:
        """Passes on what was kept."""
        self.held = b""
        self._open.set()

    def refuse(self) -> None:
        """Takes no more connections; those there are go on."""
        assert self._server is not None
        self._server.close()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
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
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.accepted = self.accepted, self.accepted + 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        host, _, port = self.target.rpartition(":")
        if port.isdecimal():
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        else:
            far_reader, far_writer = await asyncio.open_unix_connection(self.target)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(number, "up", reader, far_writer))
                pumps.create_task(self._pump(number, "down", far_reader, writer))
        except* OSError:
            pass
        finally:
            for each in (writer, far_writer):
                each.close()
                with suppress(OSError, asyncio.CancelledError):
                    await each.wait_closed()
            self._tasks.discard(task)

    async def _pump(
        self, number: int, direction: str, reader: asyncio.StreamReader, out: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(1 << 16):
            if direction == "up" and not self._open.is_set():
                self.held += data
                await self._open.wait()
            if number not in self._cut[direction]:
                out.write(data)
                await out.drain()
        # A deaf direction does not tell of the end either.
        if number not in self._cut[direction]:
            out.close()

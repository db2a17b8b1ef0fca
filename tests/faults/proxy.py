"""TCP proxies whose links can be cut, go deaf in a direction, or slow; in a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

CHUNK = 1 << 16
SLOW_BYTES_S = 200_000
SLOW_DELAY_S = 0.1


class Link:
    """What goes between one participant and one server.

    Args:
        target: HOST:PORT.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.address = ""
        """HOST:PORT to connect to."""
        self.fault = ""
        """cut: connections are reset, and refused; up, down: bytes that way wait; slow."""
        self._changed = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listens on a port of the system's choice."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"

    async def close(self) -> None:
        """Listens no more and ends all connections."""
        if self._server is not None:
            self._server.close()
        self.set("cut")

    def set(self, fault: str) -> None:
        """Makes it fail in a way, or work with an empty one."""
        self.fault = fault
        if fault == "cut":
            for writer in self._writers:
                writer.transport.abort()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        far: asyncio.StreamWriter | None = None
        try:
            if self.fault == "cut":
                return
            far_reader, far = await asyncio.open_connection(host, int(port))
            self._writers |= {writer, far}
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump("up", reader, far))
                pumps.create_task(self._pump("down", far_reader, writer))
        except* OSError:
            pass
        finally:
            for each in filter(None, (writer, far)):
                self._writers.discard(each)
                each.transport.abort()

    async def _pump(
        self, direction: str, reader: asyncio.StreamReader, out: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(CHUNK):
            # As a network that loses packets and later does not: TCP sends them again.
            while self.fault == direction:
                await self._changed.wait()
            if self.fault == "slow":
                await asyncio.sleep(SLOW_DELAY_S + len(data) / SLOW_BYTES_S)
            out.write(data)
            await out.drain()
        if self.fault != direction and out.can_write_eof():
            with suppress(OSError):
                out.write_eof()


class Proxies:
    """A loop in a thread that runs links. Use it as a context manager."""

    def __init__(self) -> None:
        self.links: dict[str, list[Link]] = {}
        """Participant -> its link to each server."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def open(self, name: str, targets: list[str]) -> str:
        """Opens the links of a participant; returns the addresses by commas."""

        async def opened() -> list[Link]:
            links = [Link(target) for target in targets]
            for link in links:
                await link.open()
            return links

        self.links[name] = self._run(opened())
        return ",".join(link.address for link in self.links[name])

    def set(self, name: str, fault: str) -> None:
        """Makes all links of a participant fail in a way, or work with an empty one."""

        async def change() -> None:
            for link in self.links[name]:
                link.set(fault)

        self._run(change())

    def __enter__(self) -> Proxies:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            for links in self.links.values():
                for link in links:
                    await link.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._run(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

"""Watch streams that are counted and timed without being parsed."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import grpc

PER_CHANNEL = 1_000
PATIENCE_S = 60.0


class Crowd:
    """Many server streams of one server, each read as bytes.

    Args:
        address: HOST:PORT.
        method: The full name of a server streaming method.
    """

    def __init__(self, address: str, method: str) -> None:
        self._address = address
        self._method = method
        self._channels: list[grpc.aio.Channel] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.told: list[int] = []
        """How many answers each stream has had."""
        self.last_at = 0.0

    async def open(self, requests: list[bytes]) -> None:
        """Opens streams and waits until each has had an answer."""
        for at in range(0, len(requests), PER_CHANNEL):
            channel = grpc.aio.insecure_channel(
                self._address, options=(("grpc.use_local_subchannel_pool", 1),)
            )
            self._channels.append(channel)
            stub: Any = channel.unary_stream(self._method)
            first = len(self.told)
            for request in requests[at : at + PER_CHANNEL]:
                number = len(self.told)
                self.told.append(0)
                self._tasks.append(asyncio.create_task(self._read(stub(request), number)))
            await self.until(1, first, len(self.told))

    async def _read(self, call: Any, number: int) -> None:
        async for _ in call:
            self.told[number] += 1
            self.last_at = time.perf_counter()

    async def until(self, count: int, first: int, last: int) -> None:
        """Waits until each of some streams has had so many answers."""
        async with asyncio.timeout(PATIENCE_S):
            while min(self.told[first:last]) < count:
                if any(task.done() for task in self._tasks):
                    raise RuntimeError("a stream has ended")
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        """Ends the streams."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels:
            with suppress(Exception):
                await channel.close()

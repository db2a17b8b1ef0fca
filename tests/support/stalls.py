"""How long an event loop computes in one go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import thread_time

TICK_S = 0.001


class Stalls:
    """The longest that the loop has computed without a turn for others, processor time, seconds."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def watch(self) -> None:
        """Look until cancelled. Time in which another process had the processor does not count."""
        while True:
            before = thread_time()
            await asyncio.sleep(TICK_S)
            self.longest_s = max(self.longest_s, thread_time() - before)


@asynccontextmanager
async def no_stall_above(seconds: float) -> AsyncIterator[Stalls]:
    """Fails if this loop computes for longer in one go."""
    stalls = Stalls()
    task = asyncio.create_task(stalls.watch())
    try:
        await asyncio.sleep(0)
        yield stalls
        await asyncio.sleep(2 * TICK_S)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert stalls.longest_s < seconds, f"the loop stood for {stalls.longest_s * 1000:.0f} ms"

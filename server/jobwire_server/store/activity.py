"""Which queues this server writes to, so that no server has to look at those that are quiet.

A server looks at a quiet queue only when something of it is due. For that to be enough it must
hear of whatever another server writes there, also if that server dies at once: so a queue that is
quiet is announced *before* it is written to, and again while it is written to.
"""

from __future__ import annotations

import asyncio


class Activity:
    """What is written, noted by prefix of a queue's keys. Belongs to one event loop."""

    def __init__(self) -> None:
        self.quiet: set[str] = set()
        """Queues that the others may hold for quiet: a write waits until they are announced."""
        self.deaf = False
        """Nothing can be announced just now: nobody waits for it, and no queue counts as quiet."""
        self.urgent = asyncio.Event()
        """Somebody waits."""
        self._written: set[str] = set()
        self._announced: asyncio.Future[None] | None = None

    def write(self, prefix: str) -> bool:
        """Note a write that is about to be made; True: `announced` has to be awaited before it."""
        self._written.add(prefix)
        return prefix in self.quiet and not self.deaf

    async def announced(self) -> None:
        """Wait until what was noted so far is announced, or can't be."""
        if self._announced is None:
            self._announced = asyncio.get_running_loop().create_future()
            self.urgent.set()
        await asyncio.shield(self._announced)

    def take(self) -> tuple[set[str], asyncio.Future[None] | None]:
        """What is to be announced now, and whom to tell when it is."""
        taken = self._written, self._announced
        self._written, self._announced = set(), None
        self.urgent.clear()
        return taken

    def close(self) -> None:
        """Let everybody go on who waits."""
        self.deaf = True
        if self._announced is not None and not self._announced.done():
            self._announced.set_result(None)
        self._announced = None

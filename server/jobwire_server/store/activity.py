"""Notes which queues this server writes to, so that no server has to poll quiet queues.

A server looks at a quiet queue only when something there is due. For that to be enough it must
hear of whatever another server writes there, even if that server dies right after: so a quiet queue
is announced *before* it is written to, and again while it is written to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from jobwire_server.domain.background import Alarm


class Activity:
    """Notes writes by the prefix of a queue's keys. Belongs to one event loop."""

    def __init__(self) -> None:
        self.quiet: set[str] = set()
        """Queues that other servers may consider quiet: a write waits until they are announced."""
        self.deaf = False
        """Nothing can be announced now: nobody waits for it, and no queue counts as quiet."""
        self.urgent = Alarm()
        """Somebody waits."""
        self._written: set[str] = set()
        self._announced: asyncio.Future[None] | None = None

    def may_be_quiet(self, prefix: str) -> None:
        """Other servers may consider a queue quiet from now on."""
        self.quiet.add(prefix)

    def forget(self, prefix: str) -> None:
        """A queue was deleted."""
        self.quiet.discard(prefix)
        self._written.discard(prefix)

    def were_announced(self, prefixes: Iterable[str]) -> None:
        """Announcements arrive, and these queues are known to be written to."""
        self.deaf = False
        self.quiet.difference_update(prefixes)

    def not_announced(self) -> None:
        """Announcements do not arrive just now."""
        self.deaf = True

    def write(self, prefix: str) -> bool:
        """Note a write that is about to happen; True if `announced` must be awaited before it."""
        self._written.add(prefix)
        return prefix in self.quiet and not self.deaf

    async def announced(self) -> None:
        """Wait until what was noted so far is announced, or cannot be."""
        if self._announced is None:
            self._announced = asyncio.get_running_loop().create_future()
            self.urgent.due_in(0)
        await asyncio.shield(self._announced)

    def take(self) -> tuple[set[str], asyncio.Future[None] | None]:
        """Return what to announce now, and the future to resolve once that is done."""
        taken = self._written, self._announced
        self._written, self._announced = set(), None
        return taken

    def close(self) -> None:
        """Release everybody who waits."""
        self.deaf = True
        if self._announced is not None and not self._announced.done():
            self._announced.set_result(None)
        self._announced = None

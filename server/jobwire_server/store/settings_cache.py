"""The settings of queues as this server knows them.

The store keeps them. Each look of a queue's clock brings them along, so a change made through any
server holds on every other within one tick (two seconds where the queue was quiet), and immediately
on the one that made it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count

from jobwire_server.domain.model import NO_SETTINGS, QueueSettings


class QueueSettingsCache:
    """Caches the settings of queues.

    Args:
        read: Reads the settings of a queue from the store.
    """

    def __init__(self, read: Callable[[str], Awaitable[QueueSettings]]) -> None:
        self._read = read
        self._known: dict[str, QueueSettings] = {}
        self._changed: dict[str, int] = {}
        self._marks = count(1)

    def mark(self) -> int:
        """Return a mark to take before settings are read; later marks are greater."""
        return next(self._marks)

    def learn(self, queue: str, settings: QueueSettings, mark: int) -> None:
        """Note what was read of an existing queue.

        Args:
            queue: Its name.
            settings: What was read.
            mark: Taken before the reading, so that it does not hide a later change by this server.
        """
        if mark > self._changed.get(queue, 0):
            self._known[queue] = settings

    async def changed(self, queue: str) -> QueueSettings:
        """Read the settings of an existing queue again, because this server has changed them.

        Raises:
            StoreUnavailable: The store does not answer; the next look of the clock brings them.
        """
        self._changed[queue] = self.mark()
        mark = self.mark()
        settings = await self._read(queue)
        self.learn(queue, settings, mark)
        return settings

    def forget(self, queue: str) -> None:
        """Forget a queue that was deleted."""
        self._known.pop(queue, None)
        self._changed.pop(queue, None)

    def known(self, queue: str) -> QueueSettings:
        """Return the settings of a queue; the defaults before its clock has first looked at it."""
        return self._known.get(queue, NO_SETTINGS)

    async def get(self, queue: str) -> QueueSettings:
        """Return the settings of a queue; ask the store if its clock has not looked at it yet.

        Raises:
            StoreUnavailable: It had to be asked and does not answer.
        """
        known = self._known.get(queue)
        # Not cached: only clocks, and whoever changes settings, know that the queue exists, and
        # names that somebody made up must not fill the memory.
        return await self._read(queue) if known is None else known

"""The settings of queues as this server knows them.

They are kept in the store. Each look of a queue's keeper brings them along, so that a change made
through any server holds on every other within one tick (two seconds where the queue was quiet), and
at once on the one that made it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count

from jobwire_server.domain.model import NO_SETTINGS, QueueSettings


class QueueSettingsCache:
    """What is known of the queues' settings.

    Args:
        read: Reads the settings of a queue from the store.
    """

    def __init__(self, read: Callable[[str], Awaitable[QueueSettings]]) -> None:
        self._read = read
        self._known: dict[str, QueueSettings] = {}
        self._changed: dict[str, int] = {}
        self._marks = count(1)

    def mark(self) -> int:
        """Returns a mark to be taken before settings are read; later ones are greater."""
        return next(self._marks)

    def learn(self, queue: str, settings: QueueSettings, mark: int) -> None:
        """Notes what was read of an existing queue.

        Args:
            queue: Its name.
            settings: What was read.
            mark: Taken before the reading. What was read before a change that this server made
                since must not hide that change.
        """
        if mark > self._changed.get(queue, 0):
            self._known[queue] = settings

    async def changed(self, queue: str) -> QueueSettings:
        """Reads the settings of an existing queue anew, because this server has changed them.

        Raises:
            StoreUnavailable: The store does not answer; the next look of the keeper brings them.
        """
        self._changed[queue] = self.mark()
        mark = self.mark()
        settings = await self._read(queue)
        self.learn(queue, settings, mark)
        return settings

    def known(self, queue: str) -> QueueSettings:
        """Returns the settings of a queue, those of one without settings before a keeper has looked
        at it.
        """
        return self._known.get(queue, NO_SETTINGS)

    async def get(self, queue: str) -> QueueSettings:
        """Returns the settings of a queue; asks the store only for one that no keeper has looked
        at yet.

        Raises:
            StoreUnavailable: It had to be asked and does not answer.
        """
        known = self._known.get(queue)
        # What is read here is not kept: only keepers, and those who change them, know that the
        # queue exists, and names that somebody made up must not fill the memory.
        return await self._read(queue) if known is None else known

"""The dispatchers of the queues that workers of this server serve."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from jobwire_server.domain.model import NewJob
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.notices import Notices
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.workers.broker_parts import Attempts
from jobwire_server.workers.dispatcher import Handover, QueueDispatcher
from jobwire_server.workers.queues_in_use import QueuesInUse

HANDED_OVER = 16
"""The most jobs of a submission that is handed over at once. Larger ones keep the claims busy as it
is, and are for the workers of all servers.
"""


class Dispatchers:
    """Finds the dispatcher of a queue.

    Args:
        store: Where jobs are claimed.
        notices: The store's channels.
        options: Retention.
        settings: Of the queues.
        attempts: Give back jobs that nobody took.
        in_use: The queues that somebody writes to.
    """

    def __init__(
        self,
        store: JobStore,
        notices: Notices,
        options: BrokerOptions,
        settings: QueueSettingsCache,
        attempts: Attempts,
        in_use: QueuesInUse,
    ) -> None:
        self._store = store
        self._notices = notices
        self._options = options
        self._settings = settings
        self._attempts = attempts
        self._in_use = in_use
        self._dispatchers: dict[str, QueueDispatcher] = {}

    def of(self, queue: str) -> QueueDispatcher:
        """Return the dispatcher of a queue."""
        dispatcher = self._dispatchers.get(queue)
        if dispatcher is None:
            self._drop_ended()
            dispatcher = self._dispatchers[queue] = QueueDispatcher(
                queue,
                self._store,
                self._notices,
                self._options,
                self._settings,
                self._attempts,
                self._in_use,
            )
        return dispatcher

    def hand_over(self, queue: str, jobs: Sequence[NewJob]) -> Handover | None:
        """Return the way to demands of this server, as `QueueDispatcher.hand_over`."""
        dispatcher = self._dispatchers.get(queue)
        if dispatcher is None or len(jobs) > HANDED_OVER:
            return None
        return dispatcher.hand_over(jobs)

    async def stop(self) -> None:
        """End all of them; tolerates never begun."""
        await asyncio.gather(*(dispatcher.stop() for dispatcher in self._dispatchers.values()))
        self._dispatchers.clear()

    def _drop_ended(self) -> None:
        for queue in [name for name, one in self._dispatchers.items() if one.ended]:
            del self._dispatchers[queue]

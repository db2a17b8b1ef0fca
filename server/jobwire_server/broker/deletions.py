"""Deletions of queues, and what follows from them on the servers that knew the queues."""

from __future__ import annotations

from collections.abc import Collection

from jobwire_server.broker.open_queues import OpenQueues
from jobwire_server.store.queues import QueueStore

SETTLING_MS = 120_000
"""For so long after a deletion it is looked for jobs that came with its end: longer than the time
within which each server has heard of it."""


class Deletions:
    """Deletes queues.

    The registry is in another place than the queue, so that nothing takes both at once. A server
    that knows the queue may bring a job there behind the last look, and die: so the deletion is
    noted first, and for a while every server looks after queues that were deleted and are there
    all the same.

    Args:
        queues: The registry, and what is kept of queues.
        open_queues: Those that this server knows.
    """

    def __init__(self, queues: QueueStore, open_queues: OpenQueues) -> None:
        self._queues = queues
        self._open_queues = open_queues

    async def delete(self, queue: str) -> None:
        """Remove a queue with everything of it; nothing where there is none.

        A deletion that breaks off leaves a queue that goes on, or is deleted again.

        Raises:
            QueueInUse: It has live jobs or schedules. If these came meanwhile, ended jobs may be
                gone.
        """
        if not await self._queues.exists(queue) and not await self._queues.is_kept(queue):
            return
        await self._queues.note_deletion(queue, done=False)
        cursor = "0"
        while cursor:
            cursor = await self._queues.erase(queue, cursor)
        await self._queues.note_deletion(queue, done=True)
        await self._settle(queue)

    async def settle(self, registered: Collection[str], now_ms: int) -> None:
        """Forget the queues that were deleted by any server, and register those that go on.

        Args:
            registered: The names of all queues.
            now_ms: The store's time.
        """
        deleted = await self._queues.deleted()
        known = self._open_queues.names
        for queue in known - deleted.keys() - set(registered):
            # A failover may lose the registration of a queue that goes on getting jobs;
            # without it no other server would keep them.
            await self._queues.register(queue)
        for queue in deleted.keys() - set(registered):
            if queue in known or now_ms - deleted[queue] < SETTLING_MS:
                await self._settle(queue)

    async def _settle(self, queue: str) -> None:
        if await self._queues.is_kept(queue):
            await self._queues.register(queue)
            self._open_queues.adopt(queue)
        else:
            await self._open_queues.forget(queue)

"""Announcements: which queues this server writes to, and which the others do.

Every server runs the clock of every queue. It learns from announcements (store/activity.py) which
of them somebody writes to, and of those that others created; the others it looks at when something
is due.
"""

from __future__ import annotations

import random
import time

from jobwire_server.broker.deletions import Deletions
from jobwire_server.broker.open_queues import OpenQueues
from jobwire_server.broker.queue_clock import QueueClocks
from jobwire_server.domain.background import Loop
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.store import keys
from jobwire_server.store.activity import Activity
from jobwire_server.store.queues import KEPT_MS, QueueStore

STIR_S = 1.0
"""How often a server announces what it writes to, and hears what others announce."""
DISCOVERY_S = 30.0
"""How often a server reads all names of queues, for those whose announcement it did not hear."""
EARLIEST_DISCOVERY_S = 1.0
"""The same, where an announcement tells of a queue that it does not know."""
OVERLAP_MS = 1_000
"""Announcements are told twice rather than not at all."""
STEP_MS = 1_000
"""A clock of the store that is so far from where it should be was set."""


class Announcements:
    """Tells the other servers which queues are written to here, and hears of theirs. `start` and
    `stop` are idempotent.

    Args:
        queues: Where announcements are made, and the registry.
        open_queues: Takes queues over that others created.
        deletions: Settles what was deleted.
        clocks: Told which queues are written to.
        clock: Told the store's time.
        activity: What this server writes to.
    """

    def __init__(
        self,
        queues: QueueStore,
        open_queues: OpenQueues,
        deletions: Deletions,
        clocks: QueueClocks,
        clock: StoreClock,
        activity: Activity,
    ) -> None:
        self._queues = queues
        self._open_queues = open_queues
        self._deletions = deletions
        self._clocks = clocks
        self._clock = clock
        self._activity = activity
        self._told_ms = 0
        self._told_s = 0.0
        self._deleted_ms = 0
        self._heard: set[str] = set()
        """Queues that were announced, until the next discovery."""
        self._next_discovery_s = 0.0
        self._loop = Loop("announcements", self._step, alarm=activity.urgent)

    def start(self) -> None:
        """Begin."""
        if not self._loop.runs:
            self._activity.were_announced(())
            self._loop.start()

    async def stop(self) -> None:
        """End; tolerates never started."""
        await self._loop.stop()
        self._activity.close()

    @property
    def heard_ms(self) -> int:
        """The store's time up to which the announcements of others were heard."""
        return self._told_ms

    async def _step(self) -> float:
        try:
            await self._exchange()
            if time.monotonic() >= self._next_discovery_s:
                await self._discover()
        except Exception:
            self._stir_all()
            raise
        return STIR_S * random.uniform(0.75, 1.0)

    async def _exchange(self) -> None:
        """Announce what is written to here, and hear of what is written to elsewhere."""
        written, waiting = self._activity.take()
        queues = [queue for queue in map(keys.queue_of, written) if queue in self._clocks]
        since_ms = max(0, self._told_ms - OVERLAP_MS)
        sent_s = time.monotonic()
        try:
            tidy = time.monotonic() >= self._next_discovery_s
            now_ms, deleted_ms, stirred = await self._queues.stir(queues, since_ms, tidy=tidy)
            self._clock.told(now_ms)
            self._activity.were_announced(map(keys.queue_prefix, queues))
        except BaseException:
            # Writes go on where the registry alone is away; meanwhile all queues are looked at.
            self._activity.not_announced()
            raise
        finally:
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        passed_ms = (time.monotonic() - self._told_s) * 1000
        was_set = abs(now_ms - self._told_ms - passed_ms) > STEP_MS + 1000 * (
            time.monotonic() - sent_s
        )
        # What is due is due at another moment; or there were announcements that are not told any
        # more. What a failover lost was written of late: to queues that are looked at anyhow.
        if was_set or passed_ms > KEPT_MS / 2:
            self._stir_all()
        self._told_ms, self._told_s = now_ms, time.monotonic()
        if deleted_ms != self._deleted_ms:
            # Settled at once, also what a server wrote to before it heard of the deletion.
            self._deleted_ms, self._next_discovery_s = deleted_ms, 0.0
        self._heard.update(stirred)
        for queue in stirred:
            if queue in self._clocks:
                self._clocks.stir(queue)
            else:
                earliest = time.monotonic() + EARLIEST_DISCOVERY_S
                self._next_discovery_s = min(self._next_discovery_s, earliest)

    def _stir_all(self) -> None:
        self._clocks.stir_all()
        self._next_discovery_s = 0.0

    async def _discover(self) -> None:
        names = await self._queues.names()
        self._next_discovery_s = time.monotonic() + DISCOVERY_S * random.uniform(0.75, 1.25)
        for queue in names:
            # Announcements are kept for longer than it takes a queue to become quiet.
            self._open_queues.adopt(queue, quiet=queue not in self._heard)
        self._heard.clear()
        await self._deletions.settle(names, self._told_ms)

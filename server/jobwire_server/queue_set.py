"""The queues that this server knows: their lanes, and their keepers.

Every server keeps every queue; it learns of those that others created by looking now and then.
"""

from __future__ import annotations

import asyncio
import random

import structlog

from jobwire_server.clock import StoreClock
from jobwire_server.errors import JobwireError
from jobwire_server.lanes import Expect, Lanes
from jobwire_server.maintenance.keeper import EndOverdue, FireDue, QueueKeeper
from jobwire_server.operations.retention import retain_ended_ms
from jobwire_server.options import BrokerOptions
from jobwire_server.queue_settings import QueueSettingsCache
from jobwire_server.store.group_commit import Backlog
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.upkeep import UpkeepStore

log = structlog.get_logger(__name__)

DISCOVERY_S = 2.0
"""How often a server looks for queues that others created."""


class QueueSet:
    """Lanes and keepers by queue. `start` and `stop` are idempotent.

    Args:
        jobs: Where jobs are.
        upkeep: Lets the clock act on them.
        queues: Where queues are registered.
        options: For lanes and keepers.
        backlog: What all lanes share.
        clock: Told the store's time by the keepers.
        expect: Told of the jobs that are on their way to a queue.
        settings: Told the queues' settings by the keepers.
    """

    def __init__(
        self,
        jobs: JobStore,
        upkeep: UpkeepStore,
        queues: QueueStore,
        options: BrokerOptions,
        backlog: Backlog,
        clock: StoreClock,
        expect: Expect,
        settings: QueueSettingsCache,
    ) -> None:
        self._jobs = jobs
        self._upkeep = upkeep
        self._queues = queues
        self._options = options
        self._backlog = backlog
        self._clock = clock
        self._expect = expect
        self._settings = settings
        self._lanes: dict[str, Lanes] = {}
        self._keepers: dict[str, QueueKeeper] = {}
        self._end_overdue: EndOverdue | None = None
        self._fire_due: FireDue | None = None
        self._discovery: asyncio.Task[None] | None = None

    def start(self, end_overdue: EndOverdue, fire_due: FireDue) -> None:
        """Begins to keep queues; `end_overdue` ends attempts that the clock ends, and `fire_due`
        settles due moments of schedules.
        """
        self._end_overdue = end_overdue
        self._fire_due = fire_due
        if self._discovery is None:
            self._discovery = asyncio.create_task(self._discover_for_ever(), name="discovery")

    async def stop(self) -> None:
        """Ends the keepers; tolerates never started."""
        if self._discovery is not None:
            self._discovery.cancel()
            await asyncio.gather(self._discovery, return_exceptions=True)
            self._discovery = None
        await asyncio.gather(*(keeper.stop() for keeper in self._keepers.values()))
        self._keepers.clear()
        self._lanes.clear()

    def lanes(self, queue: str) -> Lanes:
        """Returns the lanes of a queue, whether or not it exists."""
        lanes = self._lanes.get(queue)
        if lanes is None:
            # Not kept: whoever asks for jobs of queues that do not exist must not fill the memory.
            lanes = Lanes(
                queue, self._jobs, self._options, self._backlog, self._expect, self._settings
            )
        return lanes

    async def open(self, queue: str) -> Lanes:
        """Returns the lanes of a queue that gets jobs now; creates the queue."""
        lanes = self._lanes.get(queue)
        if lanes is None:
            # Registered before its first job, so that no server's keepers overlook it.
            await self._queues.register(queue)
            lanes = self._adopt(queue)
        return lanes

    async def retain_ended_ms(self, queue: str) -> int:
        """Returns how long jobs of the queue are kept that have ended without a result."""
        return retain_ended_ms(await self._settings.get(queue), self._options)

    def due_in(self, queue: str, wait_ms: float) -> None:
        """Has the queue looked at in so many milliseconds."""
        keeper = self._keepers.get(queue)
        if keeper is not None:
            keeper.due_in(wait_ms / 1000)

    def _adopt(self, queue: str) -> Lanes:
        lanes = self._lanes.get(queue)
        if lanes is None:
            lanes = self._lanes[queue] = self.lanes(queue)
            if self._end_overdue is not None and self._fire_due is not None:
                keeper = self._keepers[queue] = QueueKeeper(
                    queue,
                    self._upkeep,
                    self._options,
                    self._end_overdue,
                    self._fire_due,
                    self._clock.told,
                    self._settings,
                )
                keeper.start()
        return lanes

    async def _discover_for_ever(self) -> None:
        while True:
            try:
                names = await self._queues.names()
                for queue in names:
                    self._adopt(queue)
                # A failover may lose the registration of a queue that goes on getting jobs;
                # without it no other server would keep them.
                for queue in self._lanes.keys() - set(names):
                    await self._queues.register(queue)
            except JobwireError as error:
                log.debug("queues not listed", error=error.message)
            except Exception:
                log.exception("queues not listed")
            await asyncio.sleep(DISCOVERY_S * random.uniform(0.75, 1.25))

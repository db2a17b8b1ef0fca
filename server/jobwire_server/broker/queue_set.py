"""The queues that this server knows: their lanes, and their keepers.

Every server keeps every queue. It learns from announcements (store/activity.py) which of them
somebody writes to, and of those that others created; the others it looks at when something is due.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress

import structlog

from jobwire_server.broker.lanes import Expect, Lanes
from jobwire_server.broker.queue_clock import EndOverdue, FireDue, QueueKeeper
from jobwire_server.domain.decisions.retention import retain_ended_ms
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.store import keys
from jobwire_server.store.activity import Activity
from jobwire_server.store.group_commit import Backlog
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.queues import KEPT_MS, QueueStore
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.store.upkeep import UpkeepStore

log = structlog.get_logger(__name__)

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
        activity: Noted what this server writes to.
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
        activity: Activity,
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
        self._activity = activity
        self._task: asyncio.Task[None] | None = None
        self._told_ms = 0
        self._told_s = 0.0
        self._next_discovery_s = 0.0

    def start(self, end_overdue: EndOverdue, fire_due: FireDue) -> None:
        """Begins to keep queues; `end_overdue` ends attempts that the clock ends, and `fire_due`
        settles due moments of schedules.
        """
        self._end_overdue = end_overdue
        self._fire_due = fire_due
        if self._task is None:
            self._activity.deaf = False
            self._task = asyncio.create_task(self._follow(), name="queues")

    async def stop(self) -> None:
        """Ends the keepers; tolerates never started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._activity.close()
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

    def kept(self, queue: str) -> Lanes | None:
        """Return the lanes of a queue that is known to exist, None for any other."""
        return self._lanes.get(queue)

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
                    self._may_be_quiet,
                )
                self._may_be_quiet(queue)
                keeper.start()
        return lanes

    def _may_be_quiet(self, queue: str) -> None:
        self._activity.quiet.add(keys.queue_prefix(queue))

    async def _follow(self) -> None:
        while True:
            try:
                await self._exchange()
                if time.monotonic() >= self._next_discovery_s:
                    await self._discover()
            except JobwireError as error:
                log.debug("queues not followed", error=error.message)
                self._stir_all()
            except Exception:
                log.exception("queues not followed")
                self._stir_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(STIR_S * random.uniform(0.75, 1.0)):
                    await self._activity.urgent.wait()

    async def _exchange(self) -> None:
        """Announces what is written to here, and hears of what is written to elsewhere."""
        written, waiting = self._activity.take()
        queues = [queue for queue in map(keys.queue_of, written) if queue in self._keepers]
        since_ms = max(0, self._told_ms - OVERLAP_MS)
        sent_s = time.monotonic()
        try:
            tidy = time.monotonic() >= self._next_discovery_s
            now_ms, stirred = await self._queues.stir(queues, since_ms, tidy=tidy)
            self._activity.deaf = False
            self._clock.told(now_ms)
            self._activity.quiet.difference_update(map(keys.queue_prefix, queues))
        except BaseException:
            # Writes go on where the registry alone is away; meanwhile all queues are looked at.
            self._activity.deaf = True
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
        for queue in stirred:
            keeper = self._keepers.get(queue)
            if keeper is not None:
                keeper.stir()
            else:
                earliest = time.monotonic() + EARLIEST_DISCOVERY_S
                self._next_discovery_s = min(self._next_discovery_s, earliest)

    def _stir_all(self) -> None:
        for keeper in self._keepers.values():
            keeper.stir()
        self._next_discovery_s = 0.0

    async def _discover(self) -> None:
        names = await self._queues.names()
        self._next_discovery_s = time.monotonic() + DISCOVERY_S * random.uniform(0.75, 1.25)
        for queue in names:
            self._adopt(queue)
        # A failover may lose the registration of a queue that goes on getting jobs;
        # without it no other server would keep them.
        for queue in self._lanes.keys() - set(names):
            await self._queues.register(queue)

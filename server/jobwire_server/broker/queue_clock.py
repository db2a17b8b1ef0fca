"""The clocks of queues: they promote due jobs, fire schedules, end overdue attempts and forget old
jobs.
"""

from __future__ import annotations

import asyncio
import random
import time

from jobwire_server.broker.alarms import Alarms
from jobwire_server.broker.due_schedules import DueSchedules
from jobwire_server.broker.held_jobs import HeldJobs
from jobwire_server.domain.background import Alarm, Loop
from jobwire_server.domain.decisions.rates import SAMPLE_MS, SAMPLES
from jobwire_server.domain.decisions.retention import retain_ended_ms
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.store import keys
from jobwire_server.store.activity import Activity
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.store.upkeep import Tick, UpkeepStore
from jobwire_server.workers.attention import Attention
from jobwire_server.workers.queues_in_use import QueuesInUse

AT_ONCE = 200
"""Jobs of each kind in one script call; bounds how long the store is held."""
PURGE_PERIOD_S = 1.0
ERROR_PAUSE_S = 1.0
MAY_BE_QUIET_S = 10.0
"""A queue that nobody has announced for so long may be quiet to others: this server announces it
before it writes there again.
"""
QUIET_S = 15.0
"""One that nobody has announced for so long is quiet: it is looked at when something is due. Longer
than the other by more than the way of an announcement takes."""
QUIET_LOOK_S = 600.0
"""The longest time between two looks at a quiet queue, for whatever was not thought of."""
LOOKS_A_SECOND = 500
"""Of all clocks of a server, roughly: where more queues are in use, each is looked at less often
than once a tick, but for what is known to be due."""
LOOKS_AT_ONCE = 16
"""Of all clocks of a server: calls of producers and workers must not wait for thousands of looks to
have their connection to the store."""
QUIET_TRIM_S = 30.0
"""The same where output or event logs are kept for a shorter time than jobs: no due moment of those
is known."""


class QueueClock:
    """The clock of one queue. `start` and `stop` are idempotent.

    Args:
        queue: Its name.
        store: Lets the clock act on it.
        options: Periods and retention.
        held: Ends attempts whose lease, timeout, deadline or grace is over.
        schedules: Settles moments of schedules that are due.
        clock: Told the store's time at each look.
        settings: Learns the queue's settings at each look.
        activity: Told when others may hold the queue for quiet.
        alarm: Brings the next look forward.
        in_use: Told whether the queue is in use.
        turns: Lets so many clocks look at once.
        quiet: Nobody has announced it for long, so that one look will do.
    """

    def __init__(
        self,
        queue: str,
        store: UpkeepStore,
        options: BrokerOptions,
        held: HeldJobs,
        schedules: DueSchedules,
        clock: StoreClock,
        settings: QueueSettingsCache,
        activity: Activity,
        alarm: Alarm,
        in_use: QueuesInUse,
        turns: asyncio.Semaphore,
        *,
        quiet: bool = False,
    ) -> None:
        self._in_use = in_use
        self._turns = turns
        self._queue = queue
        self._store = store
        self._options = options
        self._held = held
        self._schedules = schedules
        self._clock = clock
        self._settings = settings
        self._activity = activity
        self._alarm = alarm
        self._attention = Attention(options.patience_s)
        self._next_purge = 0.0
        self._purge_due_ms = 0
        self._stirred_s = time.monotonic() - (QUIET_S if quiet else 0.0)
        self._looked = False
        self.quiet = False
        """It is looked at only when something is due."""
        self._loop = Loop(f"clock-{queue}", self._look, error_pause_s=ERROR_PAUSE_S, alarm=alarm)

    def start(self) -> None:
        """Begin."""
        self._may_be_quiet()
        self._in_use.begin(self._queue)
        self._loop.start()

    async def stop(self) -> None:
        """End; tolerates never started."""
        await self._loop.stop()
        self._in_use.end(self._queue)

    def stir(self) -> None:
        """Somebody writes to the queue, or may have: look at it as at any that is in use."""
        self._stirred_s = time.monotonic()
        if self.quiet:
            self.quiet = False
            self._in_use.begin(self._queue)
            # Not all at once, where it is said of all.
            self._alarm.due_in(self._tick_ms() / 1000 * random.random())

    async def _look(self) -> float:
        """Look once; return how long until the next, seconds."""
        if not self._looked:
            self._looked = True
            if self._stretch() > 1:
                # One of many that a server finds when it starts.
                return self._tick_ms() / 1000 * random.random()
        async with self._turns:
            return await self._look_now()

    async def _look_now(self) -> float:
        options = self._options
        loop = asyncio.get_running_loop()
        mark = self._settings.mark()
        settings = await self._settings.get(self._queue)
        retention_ms = retain_ended_ms(settings, options)
        tick = await self._store.tick(
            self._queue,
            AT_ONCE,
            retention_ms,
            SAMPLE_MS,
            SAMPLES,
            leases_until_ms=self._attention.not_after_ms(),
        )
        self._attention.looked(tick.now_ms, options.tick_ms / 1000)
        self._clock.told(tick.now_ms)
        self._settings.learn(self._queue, tick.settings, mark)
        if tick.overdue:
            await self._held.end_overdue(self._queue, tick.overdue)
            self._attention.still()
        schedules_ms = await self._fire(tick.schedules) if tick.schedules else None
        more_to_forget = False
        if loop.time() >= self._next_purge:
            forgotten, self._purge_due_ms = await self._store.purge(
                self._queue, AT_ONCE, tick.settings
            )
            looked = await self._store.trim(self._queue, AT_ONCE, tick.settings)
            more_to_forget = forgotten >= AT_ONCE or looked >= AT_ONCE
            if not more_to_forget:
                # Every server purges; the jitter keeps them from doing so in step.
                self._next_purge = loop.time() + PURGE_PERIOD_S * (0.5 + random.random())
        self._attention.still()
        # At one batch per tick, a busy queue would fill the store faster than it is emptied.
        if tick.more or more_to_forget or len(tick.overdue) >= AT_ONCE:
            return 0.0
        if self.quiet:
            # What was due is done, here or at another server, whose notice may have been lost.
            self._in_use.look(self._queue)
        if tick.busy or tick.overdue or tick.schedules:
            self._stirred_s = time.monotonic()
        wait_ms = self._longest_wait_ms(tick)
        if tick.next_due_ms:
            wait_ms = min(wait_ms, max(0, tick.next_due_ms - tick.now_ms))
        if schedules_ms is not None:
            wait_ms = min(wait_ms, schedules_ms)
        return wait_ms / 1000

    def _longest_wait_ms(self, tick: Tick) -> float:
        tick_ms = self._tick_ms() * (0.75 + random.random() / 4)
        if self._options.tick_ms >= 1000 * MAY_BE_QUIET_S:
            return tick_ms  # it is calm by itself
        calm_s = time.monotonic() - self._stirred_s
        if calm_s < MAY_BE_QUIET_S:
            return min(tick_ms, 1000 * (MAY_BE_QUIET_S - calm_s))
        self._may_be_quiet()
        self.quiet = calm_s >= QUIET_S
        if not self.quiet:
            self._in_use.begin(self._queue)
            return tick_ms
        self._in_use.end(self._queue)
        settings = tick.settings
        trims = (settings.retain_output_ms, settings.retain_event_log_ms) != (None, None)
        longest_ms = 1000 * (QUIET_TRIM_S if trims else QUIET_LOOK_S) * (0.75 + random.random() / 4)
        if self._purge_due_ms:
            # Every server purges; not at the same moment.
            purge_ms = max(0, self._purge_due_ms - tick.now_ms) + 1000 * random.random()
            longest_ms = min(longest_ms, purge_ms)
        return max(tick_ms, longest_ms)

    def _stretch(self) -> float:
        return max(1.0, len(self._in_use) / LOOKS_A_SECOND)

    def _tick_ms(self) -> float:
        return self._options.tick_ms * self._stretch()

    async def _fire(self, schedules: list[str]) -> float | None:
        """Fire schedules; return how long until the next are due, ms, None if none is."""
        fired = await self._schedules.fire(self._queue, schedules)
        if fired.held_back:
            return ERROR_PAUSE_S * 1000
        return max(0, fired.next_due_ms - fired.now_ms) if fired.next_due_ms else None

    def _may_be_quiet(self) -> None:
        self._activity.may_be_quiet(keys.queue_prefix(self._queue))


class QueueClocks:
    """The clocks of all queues that this server knows.

    Every server runs the clock of every queue; each step of one is taken once, in the store.

    Args:
        store: As for `QueueClock`, and so are the others.
        alarms: Bring looks forward.
        in_use: Told which queues are in use.
    """

    def __init__(
        self,
        store: UpkeepStore,
        options: BrokerOptions,
        held: HeldJobs,
        schedules: DueSchedules,
        clock: StoreClock,
        settings: QueueSettingsCache,
        activity: Activity,
        alarms: Alarms,
        in_use: QueuesInUse,
    ) -> None:
        self._in_use = in_use
        self._turns = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._store = store
        self._options = options
        self._held = held
        self._schedules = schedules
        self._clock = clock
        self._settings = settings
        self._activity = activity
        self._alarms = alarms
        self.by_queue: dict[str, QueueClock] = {}

    def begin(self, queue: str, *, quiet: bool = False) -> None:
        """Run the clock of a queue; idempotent.

        Args:
            queue: Its name.
            quiet: No server has announced it for long.
        """
        if queue not in self.by_queue:
            clock = self.by_queue[queue] = QueueClock(
                queue,
                self._store,
                self._options,
                self._held,
                self._schedules,
                self._clock,
                self._settings,
                self._activity,
                self._alarms.of(queue),
                self._in_use,
                self._turns,
                quiet=quiet,
            )
            clock.start()

    async def end(self, queue: str) -> None:
        """End the clock of a queue, which was deleted, and forget what it knew."""
        clock = self.by_queue.pop(queue, None)
        if clock is not None:
            await clock.stop()
        if queue not in self.by_queue:
            self._alarms.drop(queue)
            self._settings.forget(queue)
            self._activity.forget(keys.queue_prefix(queue))

    def __contains__(self, queue: str) -> bool:
        return queue in self.by_queue

    def stir(self, queue: str) -> None:
        """Somebody writes to a queue."""
        self.by_queue[queue].stir()

    def stir_all(self) -> None:
        """Somebody may write to any queue."""
        for clock in self.by_queue.values():
            clock.stir()

    async def stop(self) -> None:
        """End all of them; tolerates never begun."""
        await asyncio.gather(*(clock.stop() for clock in self.by_queue.values()))
        self.by_queue.clear()

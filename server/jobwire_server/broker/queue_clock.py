"""The keeper of one queue: promotes due jobs, fires schedules, ends overdue attempts, forgets old
jobs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog

from jobwire_server.domain.decisions.rates import SAMPLE_MS, SAMPLES
from jobwire_server.domain.decisions.retention import retain_ended_ms
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.store.upkeep import Tick, UpkeepStore
from jobwire_server.workers.attention import Attention

log = structlog.get_logger(__name__)

AT_ONCE = 200
"""Jobs of each kind in one script call; bounds how long the store is held."""
PURGE_PERIOD_S = 1.0
ERROR_PAUSE_S = 1.0
MAY_BE_QUIET_S = 10.0
"""A queue that nobody has announced for so long may be held for quiet by other servers: this one
announces it before it writes there again."""
QUIET_S = 15.0
"""One that nobody has announced for so long is quiet: it is looked at when something is due. Longer
than the other by more than the way of an announcement takes."""
QUIET_LOOK_S = 600.0
"""The longest time between two looks at a quiet queue, for whatever was not thought of."""
QUIET_TRIM_S = 30.0
"""The same where output or event logs are kept for a shorter time than jobs: no due moment of those
is known."""


class Fired(NamedTuple):
    """What a look at due schedules left behind."""

    next_due_ms: int
    """The earliest moment of any schedule of the queue, 0 for none."""
    now_ms: int
    held_back: bool
    """True: some could not be settled now; they are due until they can."""


EndOverdue = Callable[[str, list[tuple[str, str]]], Awaitable[None]]
FireDue = Callable[[str, list[str]], Awaitable[Fired]]


class QueueKeeper:
    """Runs the clock of one queue. `start` and `stop` are idempotent.

    Args:
        queue: Its name.
        store: Lets the clock act on it.
        options: Periods and retention.
        end_overdue: Decides and applies the end of attempts whose lease, timeout or grace is over.
        fire_due: Settles moments of schedules that are due.
        tell_time: Takes the store's time whenever it is told.
        settings: Learns the queue's settings at each look.
        may_be_quiet: Told that others may hold the queue for quiet.
    """

    def __init__(
        self,
        queue: str,
        store: UpkeepStore,
        options: BrokerOptions,
        end_overdue: EndOverdue,
        fire_due: FireDue,
        tell_time: Callable[[int], None],
        settings: QueueSettingsCache,
        may_be_quiet: Callable[[str], None] = lambda queue: None,
    ) -> None:
        self._queue = queue
        self._store = store
        self._options = options
        self._end_overdue = end_overdue
        self._fire_due = fire_due
        self._tell_time = tell_time
        self._settings = settings
        self._attention = Attention(options.patience_s)
        self._poke = asyncio.Event()
        self._poked_s = float("inf")
        self._next_purge = 0.0
        self._purge_due_ms = 0
        self._may_be_quiet = may_be_quiet
        self._stirred_s = time.monotonic()
        self._sleeps = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"keeper-{self._queue}")

    async def stop(self) -> None:
        """Ends; tolerates never started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def due_in(self, wait_s: float) -> None:
        """Something is due so many seconds from now; the next look is not later than that."""
        at = asyncio.get_running_loop().time() + max(0.0, wait_s)
        if at < self._poked_s:
            self._poked_s = at
            self._poke.set()

    def stir(self) -> None:
        """Somebody writes to the queue, or may have: look at it as at any that is in use."""
        self._stirred_s = time.monotonic()
        if self._sleeps:
            self._sleeps = False
            # Not all at once, where it is said of all.
            self.due_in(self._options.tick_ms / 1000 * random.random())

    async def _run(self) -> None:
        while True:
            try:
                wait_s = await self._look()
            except JobwireError as error:
                log.debug("queue not kept", queue=self._queue, error=error.message)
                wait_s = ERROR_PAUSE_S * (0.5 + random.random())
            except Exception:
                # A queue without a keeper would stand still: whatever happened, the next look
                # comes.
                log.exception("queue not kept", queue=self._queue)
                wait_s = ERROR_PAUSE_S
            await self._sleep(wait_s)

    async def _look(self) -> float:
        """One look; returns how long until the next, seconds."""
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
        self._tell_time(tick.now_ms)
        self._settings.learn(self._queue, tick.settings, mark)
        if tick.overdue:
            await self._end_overdue(self._queue, tick.overdue)
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
        # At one portion a look, a busy queue would fill the store faster than it is emptied.
        if tick.more or more_to_forget or len(tick.overdue) >= AT_ONCE:
            return 0.0
        if tick.busy or tick.overdue or tick.schedules:
            self._stirred_s = time.monotonic()
        wait_ms = self._longest_wait_ms(tick)
        if tick.next_due_ms:
            wait_ms = min(wait_ms, max(0, tick.next_due_ms - tick.now_ms))
        if schedules_ms is not None:
            wait_ms = min(wait_ms, schedules_ms)
        return wait_ms / 1000

    def _longest_wait_ms(self, tick: Tick) -> float:
        tick_ms = self._options.tick_ms * (0.75 + random.random() / 4)
        if self._options.tick_ms >= 1000 * MAY_BE_QUIET_S:
            return tick_ms  # it is calm by itself
        calm_s = time.monotonic() - self._stirred_s
        if calm_s < MAY_BE_QUIET_S:
            return min(tick_ms, 1000 * (MAY_BE_QUIET_S - calm_s))
        self._may_be_quiet(self._queue)
        self._sleeps = calm_s >= QUIET_S
        if not self._sleeps:
            return tick_ms
        settings = tick.settings
        trims = (settings.retain_output_ms, settings.retain_event_log_ms) != (None, None)
        longest_ms = 1000 * (QUIET_TRIM_S if trims else QUIET_LOOK_S) * (0.75 + random.random() / 4)
        if self._purge_due_ms:
            # Every server purges; not at the same moment.
            purge_ms = max(0, self._purge_due_ms - tick.now_ms) + 1000 * random.random()
            longest_ms = min(longest_ms, purge_ms)
        return max(tick_ms, longest_ms)

    async def _fire(self, schedules: list[str]) -> float | None:
        """Fires schedules; returns how long until the next are due, ms, None if none is."""
        fired = await self._fire_due(self._queue, schedules)
        if fired.held_back:
            return ERROR_PAUSE_S * 1000
        return max(0, fired.next_due_ms - fired.now_ms) if fired.next_due_ms else None

    async def _sleep(self, wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            self._poke.clear()
            left = min(until, self._poked_s) - loop.time()
            if left <= 0:
                break
            try:
                async with asyncio.timeout(left):
                    await self._poke.wait()
            except TimeoutError:
                break
        self._poked_s = float("inf")
        # One turn for everybody else even if there is always more to do.
        await asyncio.sleep(0)

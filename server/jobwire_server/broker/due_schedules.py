"""Due schedules: what becomes of their moments, on any server and once each.

It is decided by the pure decisions on the schedule as it was read, and written only if the schedule
still is what it was. So it does not matter how many servers do it at once, and which of them dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from jobwire_server.domain.decisions.retention import retain_ended_ms
from jobwire_server.domain.decisions.schedules import LATE_MS, Step, decide, identity_of, jitter_of
from jobwire_server.domain.errors import StoreFull, StoreUnfit
from jobwire_server.domain.ids import ulid_from
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.records import RecordCodec
from jobwire_server.store.connection.condition import StoreCondition
from jobwire_server.store.schedules import Firing, ScheduleStore, Settled, Standing
from jobwire_server.store.settings_cache import QueueSettingsCache

log = structlog.get_logger(__name__)

AT_ONCE = 200
"""Steps of one script call; bounds how long the store is held."""
AT_ONCE_BYTES = 4 << 20
"""Jobs of so many bytes are enough for a call, too."""
PASS_STEPS = 1_000
"""Steps of one look at a queue: what is left is due at the next."""
PASS_S = 0.1
"""How long one look decides, for the same reason: what was missed for days takes its time."""
COMPLAINT_S = 60.0
"""How often the log tells that a queue holds schedules back."""


class Fired(NamedTuple):
    """What a look at due schedules left behind."""

    next_due_ms: int
    """The earliest moment of any schedule of the queue, 0 for none."""
    now_ms: int
    held_back: bool
    """True: some could not be settled now; they are due until they can."""


class DueSchedules:
    """Settles the moments of schedules that are due.

    Args:
        store: Where schedules are.
        settings: Limits of queues.
        options: For jobs that are cancelled.
        condition: Of the store.
        records: Stamps the jobs.
        settled: Told how many moments were `submitted`, `skipped` or `missed`.
    """

    def __init__(
        self,
        store: ScheduleStore,
        settings: QueueSettingsCache,
        options: BrokerOptions,
        condition: StoreCondition,
        records: RecordCodec,
        settled: Callable[[str, int], None],
    ) -> None:
        self._store = store
        self._settings = settings
        self._options = options
        self._condition = condition
        self._records = records
        self._settled = settled
        self._complained: dict[str, float] = {}

    async def fire(self, queue: str, ids: Sequence[str]) -> Fired:
        """Settle moments of schedules that are due, oldest first, as many as one look may.

        Args:
            queue: Their queue.
            ids: The schedules.
        """
        now, head, standings = await self._store.standings(queue, ids)
        batches, held_back = await self.decide(queue, [found for found in standings if found], now)
        settings = await self._settings.get(queue)
        retention_ms = retain_ended_ms(settings, self._options)
        for batch in batches:
            try:
                self._condition.check_fit()
                now, head, outcomes = await self._store.fire(
                    queue, batch, self._options.cancel_grace_ms, retention_ms, settings
                )
            except (StoreFull, StoreUnfit) as error:
                # The queue's clock goes on: it forgets jobs, which makes room.
                held_back = True
                self._complain(queue, "schedules held back", error=error.message)
                break
            self._count(batch, outcomes)
            if Settled.HELD_BACK in outcomes:
                held_back = True
                self._complain(queue, "schedules held back: the queue is at its limit")
        return Fired(head, now, held_back)

    async def decide(
        self, queue: str, standings: Sequence[Standing], now_ms: int
    ) -> tuple[list[list[Firing]], bool]:
        """Return steps in batches for one script call each, and True if there is a schedule that
        can't be decided.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + PASS_S
        batches: list[list[Firing]] = [[]]
        broken = False
        steps_left, bytes_left = PASS_STEPS, AT_ONCE_BYTES
        for standing in standings:
            if standing.due_ms > now_ms:
                continue  # Another server was faster.
            if steps_left <= 0 or loop.time() > until:
                break
            try:
                steps = decide(standing.plan, standing.due_ms, now_ms)
            except Exception as error:
                # The others go on. A release that no longer knows its time zone, for example.
                broken = True
                self._complain(
                    queue,
                    "schedule not decided",
                    schedule_id=standing.schedule_id,
                    error=f"{type(error).__name__}: {error}",
                )
                continue
            for step in steps:
                if len(batches[-1]) >= AT_ONCE or bytes_left <= 0:
                    batches.append([])
                    bytes_left = AT_ONCE_BYTES
                batches[-1].append(self._firing(queue, standing, step, now_ms))
                bytes_left -= standing.job_bytes
            steps_left -= len(steps)
            if now_ms - standing.due_ms > LATE_MS:
                # Much may have been missed; others have their turn meanwhile.
                await asyncio.sleep(0)
        return [batch for batch in batches if batch], broken

    def _firing(self, queue: str, standing: Standing, step: Step, now_ms: int) -> Firing:
        schedule_id, version = standing.schedule_id, standing.version
        if not step.run_ms:
            return Firing(schedule_id, version, step)
        identity = identity_of(queue, schedule_id, standing.creation_id, step.run_ms)
        ends = standing.ends(step.run_ms)
        ready = step.run_ms + jitter_of(standing.plan, identity)
        return Firing(
            schedule_id,
            version,
            step,
            ulid_from(step.run_ms, identity),
            ready if ready > now_ms else 0,
            self._records.scheduled_stamp(schedule_id, step.run_ms, now_ms, *ends),
            ends,
        )

    def _count(self, firings: Sequence[Firing], outcomes: Sequence[Settled]) -> None:
        submitted = skipped = missed = 0
        for firing, outcome in zip(firings, outcomes, strict=True):
            submitted += outcome is Settled.SUBMITTED
            skipped += outcome is Settled.SKIPPED
            if outcome in (Settled.SUBMITTED, Settled.PASSED, Settled.SKIPPED):
                missed += firing.step.missed
        for name, count in (("submitted", submitted), ("skipped", skipped), ("missed", missed)):
            if count:
                self._settled(name, count)

    def _complain(self, queue: str, words: str, **facts: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._complained.get(queue, -COMPLAINT_S) >= COMPLAINT_S:
            self._complained[queue] = now
            log.warning(words, queue=queue, **facts)

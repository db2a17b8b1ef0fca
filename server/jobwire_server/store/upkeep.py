"""What time does to the jobs of a queue, and what frees memory."""

from __future__ import annotations

from dataclasses import dataclass

from jobwire_server.domain.model import NO_SETTINGS, QueueSettings
from jobwire_server.store import codec
from jobwire_server.store.runner import Argument, QueueScripts

WHENEVER_MS = 1 << 52
"""A moment that never comes."""


@dataclass(frozen=True, slots=True)
class Tick:
    """What the clock did to a queue, and what remains to do."""

    more: bool
    """There is more to do immediately."""
    busy: bool
    """Something was cleaned up; there may be more at the next look."""
    now_ms: int
    next_due_ms: int
    overdue: list[tuple[str, str]]
    """(condition, ULID) of attempts to end."""
    settings: QueueSettings
    """Of the queue."""
    schedules: list[str]
    """Ids of schedules that are due, the earliest first."""


class UpkeepStore(QueueScripts):
    """Applies the clock to queues. Every method raises StoreUnavailable if the store does not
    answer.
    """

    async def tick(
        self,
        queue: str,
        most: int,
        retention_ms: int,
        sample_ms: int,
        samples: int,
        *,
        leases_until_ms: int = WHENEVER_MS,
    ) -> Tick:
        """Let the clock act on a queue.

        Args:
            queue: Its name.
            most: The most jobs of each kind.
            retention_ms: How long jobs are kept that end here and say nothing themselves.
            sample_ms: The interval of the samples.
            samples: How many of them are kept.
            leases_until_ms: The store's time after which it is too late to judge which leases have
                ended; 0 to leave them alone.
        """
        now, more, tidied, next_due, config, *overdue = await self._run(
            "tick",
            queue,
            [most, retention_ms, sample_ms, samples, leases_until_ms],
        )
        parts = [part.decode() for part in overdue]
        named = list(zip(parts[::2], parts[1::2], strict=True))
        return Tick(
            bool(more),
            bool(more or tidied),
            now,
            next_due,
            [item for item in named if item[0] != "schedule"],
            codec.decode_settings(config),
            [name for condition, name in named if condition == "schedule"],
        )

    async def purge(
        self, queue: str, most: int, settings: QueueSettings = NO_SETTINGS
    ) -> tuple[int, int]:
        """Forget up to `most` jobs whose retention has ended or that exceed the queue's limits;
        return how many, and the next due moment or 0.
        """
        limits = (settings.max_ended_jobs, settings.max_ended_bytes)
        forgotten, next_due = await self._run("purge", queue, [min(most, 1000), *limits])
        return forgotten, next_due

    async def trim(self, queue: str, most: int, settings: QueueSettings) -> int:
        """Drop output and entries of the event log that are kept for less time than jobs.

        Returns:
            How many jobs were examined: at most `most`, fewer once nothing is left.
        """
        ages = (settings.retain_output_ms, settings.retain_event_log_ms)
        if ages == (None, None):
            return 0
        args: list[Argument] = [most]
        args += ("" if age is None else age for age in ages)
        looked: int = await self._run("trim", queue, args)
        return looked

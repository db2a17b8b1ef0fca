"""What the clock does to the jobs of a queue, and what makes room."""

from __future__ import annotations

from dataclasses import dataclass

from jobwire_server.domain.model import NO_SETTINGS, QueueSettings
from jobwire_server.store import codec
from jobwire_server.store.runner import Argument, QueueScripts

WHENEVER_MS = 1 << 52
"""A moment that never comes."""


@dataclass(frozen=True, slots=True)
class Tick:
    """What the clock did to a queue, and what it asks for."""

    more: bool
    """There is more to do at once."""
    busy: bool
    """Something was tidied up; there may be more of it at the next look."""
    now_ms: int
    next_due_ms: int
    overdue: list[tuple[str, str]]
    """(condition, ULID) of attempts to end."""
    settings: QueueSettings
    """Of the queue."""
    schedules: list[str]
    """Ids of schedules that are due, the earliest first."""


class UpkeepStore(QueueScripts):
    """The queues' looks at the clock. Every method raises StoreUnavailable if the store does not
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
        """Lets the clock act on a queue.

        Args:
            queue: Its name.
            most: The most jobs of each kind.
            retention_ms: Of jobs that end here and have none of their own.
            sample_ms: The interval of the samples.
            samples: How many of them are kept.
            leases_until_ms: The store's time after which the call comes too late to tell which
                leases have ended; 0 to leave them alone.
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
        """Forgets up to `most` jobs whose retention has ended, or that are too many; returns how
        many, and the next due moment or 0.
        """
        limits = (settings.max_ended_jobs, settings.max_ended_bytes)
        forgotten, next_due = await self._run("purge", queue, [min(most, 1000), *limits])
        return forgotten, next_due

    async def trim(self, queue: str, most: int, settings: QueueSettings) -> int:
        """Drops output and entries of the event log that are kept for a shorter time than the jobs.

        Returns:
            How many jobs were looked at: at most `most`, and fewer once there is nothing left.
        """
        ages = (settings.retain_output_ms, settings.retain_event_log_ms)
        if ages == (None, None):
            return 0
        args: list[Argument] = [most]
        args += ("" if age is None else age for age in ages)
        looked: int = await self._run("trim", queue, args)
        return looked

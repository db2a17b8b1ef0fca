"""What there was when a run was over, as plain values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Final:
    """What there was in the end.

    Attributes:
        jobs: Id -> the job, as `ending.plain` says it.
        live: Jobs that had not ended when the wait was over.
        counts: Queue -> state -> jobs, as GetQueue counts them.
        broken: What the store's structures say against one another.
        leftover: Keys that stay after everything was purged.
        wall_s: What to add to the monotonic clock for Unix time.
    """

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    live: list[str] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    leftover: list[str] = field(default_factory=list)
    wall_s: float = 0.0


def real_counts(final: Final) -> dict[str, dict[str, int]]:
    """Queue -> state -> jobs, counted from the jobs themselves."""
    found: dict[str, Counter[str]] = {}
    for job in final.jobs.values():
        found.setdefault(job["queue"], Counter())[job["state"]] += 1
    return {queue: dict(counts) for queue, counts in found.items()}

"""Rates of a queue, from totals sampled over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SAMPLE_MS = 5_000
SAMPLES = 13
"""With one sample every 5 s, a window of about a minute."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Jobs a second, averaged over the window."""

    per_second: Mapping[str, float]
    window_ms: int


def rates(
    now_ms: int, totals: Mapping[str, int], samples: Sequence[tuple[int, Mapping[str, int]]]
) -> Rates:
    """Compare current totals with the oldest sample of the window.

    Args:
        now_ms: When the totals were read.
        totals: Events since the queue began.
        samples: Totals at past moments, newest first.
    """
    longest = SAMPLE_MS * SAMPLES
    usable = [sample for sample in samples if 0 < now_ms - sample[0] <= longest]
    if not usable and samples and now_ms - samples[0][0] > longest:
        # Nobody looks at a quiet queue: nothing has changed since the last sample but what came
        # within the window.
        usable = [(now_ms - longest, samples[0][1])]
    if not usable:
        return Rates({}, 0)
    then_ms, then = usable[-1]
    window_ms = now_ms - then_ms
    return Rates(
        {
            name: 1000 * max(0, totals.get(name, 0) - count) / window_ms
            for name, count in then.items()
        },
        window_ms,
    )

"""How much slower the machine computes than at its best."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import thread_time

LAPS = 7
MOST = 2.5
"""Nothing is excused that takes longer than so many times what it may."""
_TEXT = bytes(range(256)) * 2_048
_TABLE = bytes(reversed(range(256)))


def _lap() -> float:
    """Compute a little, in memory and in Python; return its processor time in seconds."""
    began = thread_time()
    _TEXT.translate(_TABLE).count(b"7")
    sum(number % 7 for number in range(20_000))
    return thread_time() - began


class Pace:
    """Compares the machine with itself.

    Processor time is no measure by itself: a thread that shares its core and its caches with other
    people's gets half as much done in a second of it.

    Args:
        lap: Computes always the same; returns how long that took.
    """

    def __init__(self, lap: Callable[[], float] = _lap) -> None:
        self._lap = lap
        self._best = min(lap() for _ in range(LAPS))

    def slowness(self) -> float:
        """Return how many times as long as at best the same takes now, from 1 to `MOST`."""
        laps = [self._lap() for _ in range(LAPS)]
        self._best = min(self._best, *laps)
        return min(max(median(laps) / self._best, 1.0), MOST)

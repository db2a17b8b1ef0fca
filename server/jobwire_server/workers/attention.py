"""Attention: whether this server may tell what others have failed to do in time.

A lease that ends and a worker that falls silent are facts only for someone who listened all the
while. A server that was stopped, a loop that was held up, a store that hung or a clock that was set
forward leave a gap in which nobody could be heard; after one, workers get the time to come back
before anything is taken from them.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

LATE_S = 2.0
"""A look that comes so much later than it was to come leaves a gap."""


class Attention:
    """Follows the looks of one loop at the store.

    Args:
        patience_s: How long nothing is judged after a gap, and after the first look.
        now_s: A clock that never steps.
    """

    def __init__(self, patience_s: float, now_s: Callable[[], float] = monotonic) -> None:
        self._patience_s = patience_s
        self._now_s = now_s
        self._looked_s: float | None = None
        self._looked_ms = 0
        self._within_s = 0.0
        self._judges_from_s = float("inf")

    def looked(self, store_ms: int, within_s: float) -> None:
        """Take note of a look that the store has answered.

        Args:
            store_ms: The store's time, as it told.
            within_s: When the next look is to come at the latest.
        """
        now = self._now_s()
        if self._looked_s is None or max(
            now - self._looked_s, (store_ms - self._looked_ms) / 1000
        ) > (self._within_s + LATE_S):
            self._judges_from_s = now + self._patience_s
        self._looked_s, self._looked_ms, self._within_s = now, store_ms, within_s

    def still(self) -> None:
        """Take note that the work after a look has come to its end: it may take its time, but not
        stand still.
        """
        if self._looked_s is not None:
            since_s = self._now_s() - self._looked_s
            self.looked(self._looked_ms + round(since_s * 1000), self._within_s)

    @property
    def judges(self) -> bool:
        """True if there was no gap for long enough, as of the last look."""
        return self._now_s() >= self._judges_from_s

    def not_after_ms(self) -> int:
        """Return the store's time after which a look that is made now comes too late to judge; 0:
        it is not to judge at all.
        """
        if self._looked_s is None or not self.judges:
            return 0
        since_s = self._now_s() - self._looked_s
        if since_s > self._within_s + LATE_S:
            return 0
        return self._looked_ms + round((since_s + LATE_S) * 1000)

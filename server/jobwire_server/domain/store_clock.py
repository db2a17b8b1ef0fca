"""The store's clock, as this process sees it between calls."""

from __future__ import annotations

import time
from collections.abc import Callable


class StoreClock:
    """Estimates the store's time from the last moment that the store told.

    It stamps ids and the time of acceptance. Nothing is decided by it: whatever compares times does
    so in the store, so that servers whose own clocks are wrong agree all the same.

    Args:
        monotonic_s: A clock that never steps.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._offset_ms = time.time() * 1000 - monotonic_s() * 1000

    def now_ms(self) -> int:
        """Return the store's time in Unix milliseconds, within a round trip."""
        return int(self._monotonic_s() * 1000 + self._offset_ms)

    def told(self, store_ms: int) -> None:
        """Take over a moment that the store has just told."""
        self._offset_ms = store_ms - self._monotonic_s() * 1000

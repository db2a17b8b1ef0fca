"""Triggers Python's garbage collector by memory used, besides its own count of objects.

The jobs in hand are thousands of objects without cycles, and at Python's own thresholds scanning
them again and again takes a third of a busy worker's time. So the collector is told to run rarely.
But it counts objects, not bytes: jobs that leave a few large ones in cycles would fill the memory
first. So the size of the process is checked as well.
"""

from __future__ import annotations

import gc
import os
import sys

# The thresholds of the collector in the Pythons that are supported, up to 3.12 and from 3.13 on.
_PYTHONS_OWN = {(700, 10, 10), (2_000, 10, 10), (2_000, 10, 0), (2_000, 10, 5)}

JOBS_BETWEEN = 32
"""So many jobs end between two looks."""
LEAST_GROWTH_BYTES = 64 << 20
GROWTH = 0.25
"""Garbage is looked for when the process has grown by this share of what it was after the last
time, and by `LEAST_GROWTH_BYTES`: where it is no garbage, the looking stays rare.
"""


def calm_the_collector() -> bool:
    """Make the collector run after 20,000 new objects rather than 700.

    Returns:
        False, doing nothing, if the application has set thresholds of its own.
    """
    if gc.get_threshold() not in _PYTHONS_OWN:
        return False
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    return True


class Growth:
    """Looks for garbage when the process has grown. May be used from several threads."""

    def __init__(self) -> None:
        self._left = JOBS_BETWEEN
        self._limit = 0
        self._set_limit(resident_bytes())

    def jobs_ended(self, count: int) -> None:
        """Note that jobs ended, and check the memory now and then."""
        self._left -= count
        if self._left <= 0:
            self._left = JOBS_BETWEEN
            self.look()

    def look(self) -> None:
        """Collect if the process has grown."""
        size = resident_bytes()
        if size > self._limit:
            # Before, so that no other thread collects as well.
            self._set_limit(size)
            gc.collect()
            self._set_limit(resident_bytes())

    def _set_limit(self, size: int) -> None:
        self._limit = size + max(LEAST_GROWTH_BYTES, int(size * GROWTH))


if sys.platform == "linux":
    _PAGE = os.sysconf("SC_PAGE_SIZE")

    def resident_bytes() -> int:
        """Return how much memory the process has; 0 where that can't be told."""
        try:
            with open("/proc/self/statm", "rb", buffering=0) as file:
                return int(file.read(64).split()[1]) * _PAGE
        except OSError:
            return 0

else:

    def resident_bytes() -> int:
        """Return the most memory that the process had; 0 where that can't be told."""
        try:
            import resource
        except ImportError:
            return 0
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10

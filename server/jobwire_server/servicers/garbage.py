"""What failed calls leave behind in memory, and when it is collected."""

from __future__ import annotations

import gc

LEFT_BEHIND_BYTES = 8 << 20
"""So much of what failed calls had sent may wait for the collector."""
YOUNG_LOOKS = 16
"""Looks at what is young between two at everything."""


class Refuse:
    """What failed calls leave behind: an error and the frames it went through hold each other, and
    with them the request. The collector counts objects, and a request of a megabyte is one.
    """

    def __init__(self) -> None:
        self._bytes = 0
        self._looks = 0

    def add(self, size: int) -> None:
        """A call that had sent so many bytes has failed."""
        self._bytes += size
        if self._bytes >= LEFT_BEHIND_BYTES:
            self._bytes = 0
            self._looks += 1
            gc.collect(2 if self._looks % YOUNG_LOOKS == 0 else 1)

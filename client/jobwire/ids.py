"""Job ids: `<queue>-<26 lower-case ULID characters>`.

Source: the ULID specification, https://github.com/ulid/spec (monotonic within a millisecond).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 80


class UlidFactory:
    """Makes ULIDs that sort in the order in which they were made; safe across threads.

    Args:
        clock_ms: Unix milliseconds.
        random_bits: Gives that many random bits.
    """

    def __init__(
        self,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        random_bits: Callable[[int], int] = secrets.randbits,
    ) -> None:
        self._clock_ms = clock_ms
        self._random_bits = random_bits
        self._lock = threading.Lock()
        self._last = 0

    def make(self) -> str:
        """Returns the next one: 26 lower-case Crockford base32 characters."""
        fresh = (self._clock_ms() << _RANDOM_BITS) | self._random_bits(_RANDOM_BITS)
        with self._lock:
            # In the same millisecond, or after the clock was set back, count on from the last.
            same_ms = fresh >> _RANDOM_BITS <= self._last >> _RANDOM_BITS
            self._last = number = self._last + 1 if same_ms else fresh
        return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


_ulids = UlidFactory()


def new_job_id(queue: str) -> str:
    """Makes an id for a job of `queue`."""
    return f"{queue}-{_ulids.make()}"

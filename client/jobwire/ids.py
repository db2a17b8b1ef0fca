"""Job ids: `<queue>-<26 lower-case ULID characters>`.

Source: the ULID specification, https://github.com/ulid/spec (monotonic within a millisecond).
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from weakref import WeakSet

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_RANDOM_BITS = 80
_LOW_BITS = 20
_LOW_MASK = (1 << _LOW_BITS) - 1
_factories: WeakSet[UlidFactory] = WeakSet()


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
        self._last_ms = -1
        self._number = 0
        self._high = -1
        self._head = ""
        _factories.add(self)

    def begin_anew(self) -> None:
        """Forget the last one, in a forked child: the parent counts on from it.

        A thread of the parent, which the child does not have, may hold the lock.
        """
        self._lock = threading.Lock()
        self._last_ms = -1

    def make(self) -> str:
        """Return the next one: 26 lower-case Crockford base32 characters."""
        with self._lock:
            now = self._clock_ms()
            if now > self._last_ms:
                self._last_ms = now
                self._number = (now << _RANDOM_BITS) | self._random_bits(_RANDOM_BITS)
            else:
                # In the same millisecond, or after the clock was set back, count on from the last.
                self._number += 1
            high, low = self._number >> _LOW_BITS, self._number & _LOW_MASK
            if high != self._high:
                # Most ids of a batch differ in their last four characters alone.
                self._high = high
                self._head = "".join(
                    _PAIRS[(high >> shift) & 1023] for shift in range(100, -1, -10)
                )
            return self._head + _PAIRS[low >> 10] + _PAIRS[low & 1023]


def _begin_anew() -> None:
    for factory in _factories:
        factory.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

_ulids = UlidFactory()


def new_job_id(queue: str) -> str:
    """Make an id for a job of `queue`."""
    return f"{queue}-{_ulids.make()}"

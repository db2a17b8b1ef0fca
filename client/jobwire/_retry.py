"""When to call again, and for how long."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import grpc

from jobwire.errors import CallError, ResourceExhausted, Unavailable


class Deadline:
    """A moment after which an operation is given up.

    Args:
        timeout_s: Seconds from now; None means never.
    """

    def __init__(self, timeout_s: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = math.inf if timeout_s is None else now() + timeout_s

    def remaining_s(self) -> float:
        """Seconds left; infinite if there is no limit, never below 0."""
        return max(0.0, self._end - self._now())

    def expired(self) -> bool:
        """True once the time is over."""
        return self.remaining_s() <= 0


class Backoff:
    """Waits that grow from one failure to the next, with jitter.

    Args:
        initial_s: The wait after the first failure.
        max_s: The longest computed wait.
        draw: Gives a number from 0 to 1.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog (equal jitter).
    """

    def __init__(
        self,
        initial_s: float = 0.1,
        max_s: float = 5.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._initial_s = initial_s
        self._max_s = max_s
        self._draw = draw
        self._failures = 0

    def next_s(self, retry_after_s: float | None = None) -> float:
        """Counts a failure and returns the seconds to wait, no less than `retry_after_s`."""
        # 2.0**1024 overflows; the cap is reached long before.
        grown = min(self._max_s, self._initial_s * 2.0 ** min(self._failures, 60))
        self._failures += 1
        wait = grown * (0.5 + 0.5 * self._draw())
        if retry_after_s is None:
            return wait
        # Spread what was told to everyone alike, so that not all of them come at once.
        return max(wait, retry_after_s * (1 + 0.2 * self._draw()))

    def reset(self) -> None:
        """Forgets the failures, after a success."""
        self._failures = 0


def worth_retrying(error: CallError) -> bool:
    """Tells whether the same call may succeed soon.

    Every call of this package may be repeated safely (ids are made before the call and each
    write is idempotent), so only the status decides.
    """
    # CANCELLED comes from a server that was stopped in the middle, or that has more calls at its
    # door than it can look at; a caller who cancels gets no CallError.
    if isinstance(error, Unavailable) or error.code is grpc.StatusCode.CANCELLED:
        return True
    return isinstance(error, ResourceExhausted) and error.retry_after_s is not None

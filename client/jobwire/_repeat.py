"""When to call again, and for how long."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import grpc

from jobwire.errors import CallError, ClientClosed, DeadlineExceeded


class Deadline:
    """A moment after which to give up.

    Args:
        timeout_s: Seconds from now; None means never.
    """

    def __init__(self, timeout_s: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = math.inf if timeout_s is None else now() + timeout_s

    def remaining_s(self) -> float:
        """Return the seconds left; infinite if there is no limit, never below 0."""
        return max(0.0, self._end - self._now())

    def for_call_s(self, at_most_s: float = math.inf) -> float | None:
        """Return the seconds left, at most `at_most_s`, as gRPC takes them; None: no limit."""
        left = min(self.remaining_s(), at_most_s)
        return None if math.isinf(left) else left

    def expired(self) -> bool:
        """Return True once the time is over."""
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
        """Count a failure and return the seconds to wait, at least `retry_after_s`."""
        # 2.0**1024 overflows; the cap is reached long before.
        grown = min(self._max_s, self._initial_s * 2.0 ** min(self._failures, 60))
        self._failures += 1
        wait = grown * (0.5 + 0.5 * self._draw())
        if retry_after_s is None:
            return wait
        # Everyone was told the same, so spread it, or all come at once.
        return max(wait, retry_after_s * (1 + 0.2 * self._draw()))

    def reset(self) -> None:
        """Forget the failures, after a success."""
        self._failures = 0


class Repeat(Enum):
    """Whether the same call may succeed soon."""

    YES = "yes"
    IF_TOLD_WHEN = "only if the answer says when"
    NO = "no"


class Doubt(Enum):
    """Why a worker keeps trying although it was refused."""

    NONE = "it is final"
    DEFECT = "a defect of one server, or a proxy's way to break a connection off"
    PROXY = "a proxy says it too while it is being switched over"


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What a status means, by who gave it."""

    from_broker: Repeat
    from_others: Repeat
    doubt: Doubt = Doubt.NONE


# A Jobwire server says its reason (ErrorInfo). An answer without one comes from a proxy or from
# gRPC itself, where "forbidden" or "not found" is how a proxy looks while it is being switched
# over. Repeating is safe in either case: ids are made before the call, and writes are idempotent.
# Other statuses are final.
_MEANINGS = {
    # The broker: its store is away, or it drains. Others: no connection, one that broke, HTTP 429,
    # 502, 503, 504.
    grpc.StatusCode.UNAVAILABLE: _Meaning(Repeat.YES, Repeat.YES),
    # A server or proxy that was stopped in the middle, or has more calls than it can look at. A
    # caller who cancels gets no CallError.
    grpc.StatusCode.CANCELLED: _Meaning(Repeat.YES, Repeat.YES),
    # The broker: a limit, which says when to try again if that may help. Others: gRPC's memory
    # quota, a proxy's limit.
    grpc.StatusCode.RESOURCE_EXHAUSTED: _Meaning(Repeat.IF_TOLD_WHEN, Repeat.YES),
    # Others: RST_STREAM of a proxy that thinks a quiet stream is dead; HTTP 400.
    grpc.StatusCode.INTERNAL: _Meaning(Repeat.NO, Repeat.YES, Doubt.DEFECT),
    # Others: HTTP statuses without a gRPC status of their own, such as 500.
    grpc.StatusCode.UNKNOWN: _Meaning(Repeat.NO, Repeat.YES, Doubt.DEFECT),
    # Others: HTTP 404, 403, 401.
    grpc.StatusCode.UNIMPLEMENTED: _Meaning(Repeat.NO, Repeat.YES, Doubt.PROXY),
    grpc.StatusCode.PERMISSION_DENIED: _Meaning(Repeat.NO, Repeat.YES, Doubt.PROXY),
    grpc.StatusCode.UNAUTHENTICATED: _Meaning(Repeat.NO, Repeat.YES, Doubt.PROXY),
}
_FINAL = _Meaning(Repeat.NO, Repeat.NO)
_TOO_LARGE = "larger than max"
# Messages of gRPC itself after which a repeat would not help.
_FOR_GOOD_WORDS = (
    "Method not found",  # the server is a gRPC server and lacks the method
    "Method not implemented",
    _TOO_LARGE,  # a message above a limit of this side or the other
    "serializing",  # a message that this side can't write or read
)


def is_from_broker(error: CallError) -> bool:
    """Tell whether a Jobwire server gave the answer, rather than a proxy or gRPC itself."""
    return bool(error.reason or error.violations)


def worth_repeating(error: CallError) -> bool:
    """Tell whether the same call may succeed soon."""
    if isinstance(error, ClientClosed):
        return False
    meaning = _MEANINGS.get(error.code, _FINAL)
    if is_from_broker(error):
        repeat = meaning.from_broker
    else:
        repeat = meaning.from_others
        if any(words in error.message for words in _FOR_GOOD_WORDS):
            repeat = Repeat.NO
    if repeat is Repeat.IF_TOLD_WHEN:
        return error.retry_after_s is not None
    return repeat is Repeat.YES


def is_passing(error: CallError) -> bool:
    """Tell whether the same call may succeed soon, as one that ran out of time may."""
    return isinstance(error, DeadlineExceeded) or worth_repeating(error)


def doubt_of(error: CallError) -> Doubt:
    """Return why a worker keeps trying although it was refused."""
    return _MEANINGS.get(error.code, _FINAL).doubt


async def async_sleep(seconds: float) -> None:
    """Wait without blocking the loop."""
    await asyncio.sleep(seconds)


def sync_sleep(seconds: float) -> None:
    """Wait, blocking the thread."""
    time.sleep(seconds)

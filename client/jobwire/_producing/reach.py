"""Whether a producer's streams can be had, and when to try again."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from jobwire._repeat import Backoff
from jobwire.errors import CallError

REST_S = 60.0
"""How long no stream is tried where it was found that none works."""
PATIENCE = 3
"""After so many streams that did not open in a row, submissions wait for none any more."""


class Reach:
    """Remembers how streams went, and how calls without one did.

    A server that can't be reached is no reason to do without streams, since calls don't reach it
    either. A proxy that breaks streams is: there calls work and streams don't.

    Args:
        now: The clock, in seconds.

    Attributes:
        is_fine: True while there is nothing to remember.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._backoff = Backoff(initial_s=0.05, max_s=2.0)
        self._failures = 0
        self._failed_at = 0.0
        self._answered_at = -1.0
        self._again_at = 0.0
        self._rests_until = 0.0
        self._contradicted = 0
        self.is_fine = True

    @property
    def is_resting(self) -> bool:
        """True while streams are known not to work, and none is tried."""
        return self._now() < self._rests_until

    @property
    def is_doubtful(self) -> bool:
        """True while streams fail: what can do without one does."""
        return self._failures >= PATIENCE or self.is_resting

    @property
    def wants_evidence(self) -> bool:
        """True if it is not known whether calls work where streams don't."""
        return self._failures >= PATIENCE and self._answered_at < self._failed_at

    @property
    def next_s(self) -> float:
        """The seconds until another stream may be tried."""
        return max(0.0, self._again_at - self._now(), self._rests_until - self._now())

    def opened(self) -> None:
        """Note a stream that opened: it is worth a trial."""
        self._failures = min(self._failures, PATIENCE - 1)

    def worked(self) -> None:
        """Note a stream that was of use."""
        self._failures = self._contradicted = 0
        self._backoff.reset()
        self.is_fine = True

    def pause(self) -> None:
        """Let some time pass before the next stream, although none failed."""
        self._again_at = self._now() + self._backoff.next_s()

    def failed(self, error: CallError | None, *, silent: bool = False) -> None:
        """Note a stream that did not open, or ended.

        Args:
            error: What it ended with.
            silent: True: it was given up.
        """
        now = self._now()
        self.is_fine = False
        if error is not None and is_missing(error):
            self._rests_until = now + REST_S
        elif self._failures and self._failed_at <= self._answered_at:
            # A call was answered since the one before.
            self._contradicted += 1
            if self._contradicted >= 2 or silent:
                self._rests_until = now + REST_S
        if self.is_resting:
            self._failures = self._contradicted = 0
        else:
            self._failures = max(self._failures + 1, PATIENCE if silent else 0)
        self._failed_at = now
        self._again_at = now + self._backoff.next_s(error.retry_after_s if error else None)

    def answered(self) -> None:
        """Note that a call without a stream was answered."""
        if self._failures:
            self._answered_at = self._now()


def is_missing(error: CallError) -> bool:
    """Tell whether the server is one without such streams."""
    # Without these words it comes from a proxy, which may be being switched over.
    words = ("Method not found", "Method not implemented", "unknown method", "unknown service")
    return error.code is grpc.StatusCode.UNIMPLEMENTED and (
        bool(error.reason) or any(word in error.message for word in words)
    )

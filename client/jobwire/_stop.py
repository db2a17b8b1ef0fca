"""The signal that tells a handler to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

StopReason = Literal["", "cancelled", "lease_lost", "shutdown", "timeout", "deadline"]


class StopSignal:
    """Tells a handler to stop, and why; may be given from any thread.

    Attributes:
        reason: Why; empty until it is given.
        message: In the words of whoever asked.
        on_set: Called with every signal, in the thread that gives it.
    """

    # Every job has one and few are given; until then these defaults of the class serve.
    reason: StopReason = ""
    message: str = ""
    on_set: Callable[[], None] | None = None
    # Made by the first waiter: most handlers never wait, and an event costs more than the rest of
    # a job's bookkeeping.
    _event: threading.Event | None = None
    _making = threading.Lock()

    @property
    def is_set(self) -> bool:
        """True once it was given."""
        return self.reason != ""

    def set(self, reason: StopReason, message: str = "") -> None:
        """Give the signal; a second one replaces the first only if the lease is lost."""
        # A lost lease overrides: nothing that the handler does counts any more.
        if not self.reason or reason == "lease_lost":
            self.message = message
            self.reason = reason
        if self._event is not None:
            self._event.set()
        if self.on_set is not None:
            self.on_set()

    def wait(self, timeout_s: float | None) -> bool:
        """Block until it is given; return False if `timeout_s` passes first."""
        with self._making:
            if self._event is None:
                self._event = threading.Event()
        # `set` writes the reason before it looks for an event: one of the two sees the other.
        return self.is_set or self._event.wait(timeout_s)

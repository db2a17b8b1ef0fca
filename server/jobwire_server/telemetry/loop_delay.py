"""How late the event loop comes round: what every caller waits for whom somebody else holds up."""

from __future__ import annotations

import asyncio
import time

from jobwire_server.telemetry.metrics import LOOP, STALLS, RpcMetrics

PERIOD_S = 0.05
"""Between two looks; they cost less than a thousandth of a core."""
STALL_S = 0.1
"""A loop that computes for so long without coming round has stalled."""


class LoopDelay:
    """Looks again and again how late the running loop is. `start` and `stop` are idempotent.

    Args:
        metrics: Where the delays are counted.
    """

    def __init__(self, metrics: RpcMetrics) -> None:
        self._stats = metrics.method(LOOP)
        self._handle: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._cpu = 0.0

    def start(self) -> None:
        """Begin, in the loop to look at."""
        if self._handle is None:
            self._arm()

    def stop(self) -> None:
        """Look no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        self._due = time.monotonic() + PERIOD_S
        self._cpu = time.thread_time()
        self._handle = asyncio.get_running_loop().call_later(PERIOD_S, self._look)

    def _look(self) -> None:
        # A loop counts its timers from the beginning of its turn, and so may come early.
        late = max(0.0, time.monotonic() - self._due)
        self._stats.observe(late)
        # A thread that waits for a processor is late as well, and nothing that it does is too long.
        if min(late, time.thread_time() - self._cpu) > STALL_S:
            self._stats.cells[STALLS] += 1
        self._arm()

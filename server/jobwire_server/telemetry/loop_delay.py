"""How late the event loop comes round: what every caller waits for whom somebody else holds up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog
from structlog.typing import FilteringBoundLogger

from jobwire_server.telemetry.metrics import LOOP, STALLS, RpcMetrics

log: FilteringBoundLogger = structlog.get_logger("jobwire.loop")

PERIOD_S = 0.025
"""Between two looks, which take about a thousandth of a core. What was computed before the loop was
late is taken for a part of its stall, so this is short.
"""
STALL_S = 0.1
"""A loop that computes for so long without coming round has stalled."""
LEAST_SHARE = 0.6
"""Of the time that it is late. A machine that gave it less may as well have held it up: what has
piled up by then is computed in one go.
"""


class LoopDelay:
    """Looks again and again how late the running loop is. `start` and `stop` are idempotent.

    Args:
        metrics: Where the delays are counted.
        processor_s: The processor time of the loop's thread so far.
    """

    def __init__(
        self, metrics: RpcMetrics, processor_s: Callable[[], float] = time.thread_time
    ) -> None:
        self._processor_s = processor_s
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
        self._cpu = self._processor_s()
        self._handle = asyncio.get_running_loop().call_later(PERIOD_S, self._look)

    def _look(self) -> None:
        # A loop counts its timers from the beginning of its turn, and so may come early.
        late = max(0.0, time.monotonic() - self._due)
        self._stats.observe(late)
        # A thread that waits for a processor is late as well, and finds a heap of work when it gets
        # one: nothing that it does is too long.
        computed = self._processor_s() - self._cpu
        if min(late, computed) > STALL_S and computed > late * LEAST_SHARE:
            self._stats.cells[STALLS] += 1
            log.warning(
                "the event loop stalled",
                late_ms=round(late * 1_000),
                computed_ms=round(computed * 1_000),
            )
        self._arm()

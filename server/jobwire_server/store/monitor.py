"""Watches whether the store can be reached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from structlog.typing import FilteringBoundLogger

from jobwire_server.store.connect import STORE_ERRORS, Connection, cause_of

PERIOD_S = 1.0
AWAY_PERIOD_S = 0.25
"""How often a store that is away is tried: what comes back should be used soon."""
ANSWER_TIMEOUT_S = 2.0

log: FilteringBoundLogger = structlog.get_logger("jobwire.store")


class StoreMonitor:
    """Sends a PING every second and tells when the answer changes.

    Args:
        connection: The store.
        on_change: Awaited with True when the store came back, False when it is away.
    """

    def __init__(
        self, connection: Connection, on_change: Callable[[bool], Awaitable[None]]
    ) -> None:
        self._connection = connection
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self._part = ""
        self.reachable = True
        """As of the last look."""
        self.looked_at = time.monotonic()
        """When that was: an old moment means that the event loop is stuck."""

    def start(self) -> None:
        """Begin to look. Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="store-monitor")

    async def stop(self) -> None:
        """Look no more. Idempotent, and fine before start."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            # A connection that broke since its last use fails once, whatever the store does.
            problem = await self._look() and await self._look()
            if bool(problem) == self.reachable:
                self.reachable = not problem
                if problem:
                    log.error("the store can't be reached", url=self._connection.url, error=problem)
                else:
                    log.info("the store is back", url=self._connection.url)
                await self._on_change(self.reachable)
            await asyncio.sleep(PERIOD_S if self.reachable else AWAY_PERIOD_S)

    async def _look(self) -> str:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                self._tell_part(await self._connection.look())
        except STORE_ERRORS as error:
            return str(cause_of(error)) or "no answer"
        finally:
            self.looked_at = time.monotonic()
        return ""

    def _tell_part(self, problem: str) -> None:
        if bool(problem) != bool(self._part):
            if problem:
                # Not NOT_SERVING: what the other nodes serve would then be served by nobody.
                log.error(
                    "a part of the cluster can't be reached",
                    url=self._connection.url,
                    error=problem,
                )
            else:
                log.info("all of the cluster is back", url=self._connection.url)
        self._part = problem

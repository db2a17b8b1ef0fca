"""Watches whether the store can be reached, and whether it still is what the start found."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from structlog.typing import FilteringBoundLogger

from jobwire_server.domain.background import Loop
from jobwire_server.store.connection.condition import StoreCondition
from jobwire_server.store.connection.connect import STORE_ERRORS, Connection, cause_of

PERIOD_S = 1.0
AWAY_PERIOD_S = 0.25
"""How often to try a store that is away: one that comes back should be used soon."""
ANSWER_TIMEOUT_S = 2.0
RIGHTS_EVERY = 4
"""Looks for each trial of the user's rights, which takes some sixty commands."""

log: FilteringBoundLogger = structlog.get_logger("jobwire.store")


class Inspects(Protocol):
    """Says why a store that answers must not get new jobs, "" if it may."""

    async def look(self, *, rights: bool) -> str:
        """Look once; try the rights of the store's user only if asked."""


class StoreMonitor:
    """Looks at the store every second and reports changes.

    Args:
        connection: The store.
        condition: Where to note what was found.
        on_change: Awaited when the store went away or came back, and when it became unfit or fit.
        inspection: Checks more than whether it answers. None: nothing more is checked.
    """

    def __init__(
        self,
        connection: Connection,
        condition: StoreCondition,
        on_change: Callable[[], Awaitable[None]],
        inspection: Inspects | None = None,
    ) -> None:
        self._connection = connection
        self._condition = condition
        self._on_change = on_change
        self._inspection = inspection
        self._loop = Loop("store-monitor", self._follow, error_pause_s=PERIOD_S)
        self._part = ""
        self._untried = RIGHTS_EVERY
        """Looks left until the rights are tried again."""
        self.looked_at = time.monotonic()
        """When that was; long ago means that the event loop is stuck."""

    @property
    def reachable(self) -> bool:
        """As of the last look."""
        return not self._condition.away

    def start(self) -> None:
        """Start looking. Idempotent."""
        self._loop.start()

    async def stop(self) -> None:
        """Look no more. Idempotent, and fine before start."""
        await self._loop.stop()

    async def _follow(self) -> float:
        condition = self._condition
        was_away, was_unfit = bool(condition.away), condition.unfit
        problem = await self._look()
        if problem:
            condition.missed(problem)
            if not was_away:
                log.error("the store can't be used", problem=condition.problem)
        else:
            condition.answered()
            if was_away:
                log.info("the store is back", url=self._connection.url)
                # After a failover this may be another store.
                self._untried = 0
            await self._inspect()
        if was_away != bool(condition.away) or was_unfit != condition.unfit:
            await self._on_change()
        return AWAY_PERIOD_S if condition.away else PERIOD_S

    async def _look(self) -> str:
        """Ask for a sign of life; return why there was none."""
        problem, hangs = await self._ask()
        # A connection that broke since its last use fails once, whatever the store does.
        return (await self._ask())[0] if problem and not hangs else problem

    async def _ask(self) -> tuple[str, bool]:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                self._tell_part(await self._connection.look())
        except TimeoutError:
            return f"it hangs: no answer to PING within {ANSWER_TIMEOUT_S:g} s", True
        except STORE_ERRORS as error:
            return str(cause_of(error)).rstrip(".") or type(error).__name__, False
        finally:
            self.looked_at = time.monotonic()
        return "", False

    async def _inspect(self) -> None:
        condition = self._condition
        if self._inspection is None:
            return
        # At each look while something is wrong, so that a repair is noticed soon.
        rights = self._untried <= 0 or bool(condition.unfit)
        self._untried = RIGHTS_EVERY if rights else self._untried - 1
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                found = await self._inspection.look(rights=rights)
        except STORE_ERRORS as error:
            # The next look sees whether it is away; a store that is loading is just that.
            log.debug("the store was not inspected", error=str(cause_of(error)))
            return
        finally:
            self.looked_at = time.monotonic()
        if found == condition.unfit:
            return
        if found:
            log.error("no new jobs are accepted: the store is unfit", problem=found)
        else:
            log.info("new jobs are accepted again")
        condition.unfit = found

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

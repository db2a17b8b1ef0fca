"""Finds the primary by asking the sentinels, and takes connections away from the one before.

redis-py finds the primary when it opens a connection. Here it is looked for all the while, because
after a planned failover the old one goes on answering, for many seconds, what will be thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.exceptions import ResponseError

from jobwire_server.store.connection.sending import CANCELLABLE

Address = tuple[str, int]

GRACE_S = 0.05
"""For the other sentinels to answer, once half of them have: with the first to answer alone, an old
configuration might be taken for the newest."""


class Sentinels(Sentinel):
    """Asks all sentinels at once, so that one that hangs or has old news holds up nobody.

    redis-py asks one after the other and moves the one that answered to the front, where
    concurrent callers overwrite each other's entries until a single sentinel is left.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]
        for one in self.sentinels:  # the class can't be passed
            pool = one.connection_pool
            pool.connection_class = CANCELLABLE[pool.connection_class]

    async def discover_master(self, service_name: str) -> Address:
        """The primary of the newest configuration that half of the sentinels know.

        Raises:
            MasterNotFoundError: None that answers knows a primary that is up.
            ResponseError: Whoever answers is no sentinel.
        """
        asked = [asyncio.ensure_future(self._ask(one, service_name)) for one in self.sentinels]
        pending = set(asked)
        answers: list[dict[str, Any] | None] = []
        errors: list[BaseException] = []
        found: Address | None = None
        enough = False
        try:
            while pending:
                done, pending = await asyncio.wait(
                    pending,
                    timeout=GRACE_S if enough else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    break
                for task in done:
                    error = task.exception()
                    if error is None:
                        answers.append(task.result())
                    else:
                        errors.append(error)
                found = newest([state for state in answers if state is not None])
                enough = found is not None and 2 * len(answers) >= len(asked)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if found is not None:
            return found
        if not answers and isinstance(errors[0], ResponseError):
            raise errors[0]
        said = "".join(f"; {error}" for error in errors)
        raise MasterNotFoundError(f"No master found for {service_name!r}{said}")

    async def _ask(self, sentinel: Any, service_name: str) -> dict[str, Any] | None:
        services: dict[str, dict[str, Any]] = await sentinel.sentinel_masters()
        return services.get(service_name)


def newest(states: Sequence[dict[str, Any]]) -> Address | None:
    """The primary of the newest configuration, unless all who know that say it is down.

    Args:
        states: What sentinels say of one service, in the form of redis-py.
    """
    epoch = max((state["config-epoch"] for state in states), default=0)
    for state in states:
        down = state["is_sdown"] or state["is_odown"] or not state["is_master"]
        if state["config-epoch"] == epoch and not down:
            return state["ip"], state["port"]
    return None


class SentinelPool(BlockingConnectionPool, SentinelConnectionPool):
    """Connections to the primary; all are closed when another takes its place."""

    def __init__(self, service_name: str, sentinel_manager: Sentinel, **options: Any) -> None:
        # The two constructors of redis-py hand on by keyword what they do not know.
        super().__init__(service_name=service_name, sentinel_manager=sentinel_manager, **options)
        self._unpooled = WeakSet[AbstractConnection]()

    def unpooled(self) -> AbstractConnection:
        """A connection outside the pool, which is closed when the primary changes."""
        connection: AbstractConnection = self.make_connection()  # type: ignore[no-untyped-call]
        self._unpooled.add(connection)
        return connection

    async def get_master_address(self) -> Address:
        """Look for the primary; if it is another one, close every connection to the one before.

        Commands that are under way there fail, and whoever sent them may repeat them: an answer of
        the old primary would be about data that is thrown away, and one that hangs gives none.
        """
        before = self.master_address
        address: Address = await super().get_master_address()  # type: ignore[no-untyped-call]
        if before not in (None, address):
            for connection in (*self._in_use_connections, *self._unpooled):
                await connection.disconnect(nowait=True)
        return address

"""Waits until replicas have a write before anybody hears of it.

A write, a fence (fence.lua) and WAIT go out together over one connection: WAIT is about the last
write of its own connection, and counts the replicas that have everything up to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.store.connection.cluster import ClusterClient

log: FilteringBoundLogger = structlog.get_logger("jobwire.store")

UNWAITED = frozenset(
    {
        # No caller gets an answer from these, and every server repeats them. What a caller hears of
        # later, a claim for instance, waits for them too, because they were written before.
        *("tick", "trim", "purge", "fire", "worker_sweep", "worker_break"),
        # A worker that the next primary does not know registers again, and signs of life keep
        # coming. Waiting would declare workers lost because a replica is away.
        *("worker_register", "worker_attach", "worker_remove", "worker_touch"),
        # Repeats what a cancellation said, whose answer has waited.
        "take_cancels",
        # Only says which queues need a look, and after a failover every server looks everywhere.
        "stir",
    }
)
"""Scripts that write and yet are answered at once."""


class ReplicaWait:
    """Sends writes that count only once so many replicas have them.

    Args:
        client: A redis.asyncio client, standalone or cluster.
        replicas: How many. 1 or more.
        timeout_ms: How long they may take. Shorter than what bounds a read of the connection.
    """

    def __init__(self, client: Any, replicas: int, timeout_ms: int) -> None:
        self._client = client
        self._replicas = replicas
        self._timeout_ms = timeout_ms
        self._short = False

    async def send(self, write: Sequence[Any], fence: Sequence[Any]) -> tuple[Any, int]:
        """Send a write and a fence in one round trip, and wait for the replicas.

        Returns:
            The write's answer, and how many replicas have it and all that was written before.

        Raises:
            RedisError: What the store said to any of them, or that its answer was lost.
        """
        commands = (write, fence, ("WAIT", self._replicas, self._timeout_ms))
        answers = await self._together(commands)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers[0], int(answers[2])

    def check(self, have: int) -> None:
        """Raise StoreUnavailable if fewer replicas have the write than are wanted."""
        if self._short != (have < self._replicas):
            self._short = not self._short
            tell = log.warning if self._short else log.info
            tell(
                "too few replicas have what is written"
                if self._short
                else "enough replicas have what is written",
                wait_replicas=self._replicas,
                have=have,
            )
        if have < self._replicas:
            raise StoreUnavailable(
                f"wait_replicas is {self._replicas}, and the write reached {have} within"
                f" {self._timeout_ms} ms; it stands on the primary: retry with the same ids"
            )

    async def _together(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        if isinstance(self._client, ClusterClient):
            return await self._client.execute_together(commands)
        async with self._client.pipeline(transaction=False) as pipeline:
            for words in commands:
                pipeline.execute_command(*words)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

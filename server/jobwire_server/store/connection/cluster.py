"""A cluster's client that confines the trouble of one node or one slot to its own queues.

redis-py's own sends nothing to any node until it has learned the whole topology anew after any
error, which a node that is missing may prevent; closes the connections to all nodes when one says
that the cluster is down; and follows ASK. This one sends each command to the node of its key,
and learns the topology beside that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode, PipelineCommand
from redis.exceptions import (
    ClusterDownError,
    MovedError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from structlog.typing import FilteringBoundLogger

MAX_HOPS = 5
"""How often one command follows MOVED; nodes that disagree for longer will agree soon."""
REFRESH_PAUSE_S = 0.25
"""From one look at the topology to the next at the earliest: each makes connections anew."""
LOOK_S = 1.5
"""How long a node may take to say whether it serves; less than the monitor waits for all."""
_BEFORE_KEY = {"EVALSHA": 3, "EVAL": 3}
"""How many words precede the first key; one in all other commands used here."""

log: FilteringBoundLogger = structlog.get_logger("jobwire.store")


class ClusterClient(RedisCluster):
    """Sends each command once to the node of its key, and follows MOVED."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._refreshing: asyncio.Task[None] | None = None

    async def initialize(self, *args: Any, **kwargs: Any) -> ClusterClient:
        """Learn the topology, once. Raises RedisClusterException if no node tells it."""
        if self._initialize:
            # Without the list of commands, for which redis-py asks a node that may be missing.
            try:
                await self.nodes_manager.initialize()
            except BaseException:
                await self.nodes_manager.aclose("startup_nodes")
                raise
            self._initialize = False
        return self

    async def aclose(self) -> None:
        """Close every connection; harmless if none was opened."""
        task, self._refreshing = self._refreshing, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await super().aclose()

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Send a command that has a key to the node that serves it. Raises as `routed`."""
        return await self.routed(args, lambda node: node.execute_command(*args, **kwargs))

    async def routed(
        self, words: Sequence[Any], send: Callable[[ClusterNode], Awaitable[Any]]
    ) -> Any:
        """Send a command that has a key to the node that serves it.

        Args:
            words: The command.
            send: Sends it to a node.

        Raises:
            AskError: The slot is on its way to another node, and so are its keys.
        """
        if self._initialize:
            await self.initialize()
        slot = self.keyslot(words[_BEFORE_KEY.get(words[0], 1)])
        for _ in range(MAX_HOPS):
            node = self.node_of_slot(slot)
            try:
                return await send(node)
            except MovedError as error:
                await self.nodes_manager.move_slot(error)
            except (RedisConnectionError, RedisTimeoutError, ClusterDownError):
                self.doubt(node)
                raise
            # AskError is not followed. While a slot moves, its keys are at two places, and a
            # script would find at either an empty queue or half of one. No script's first key
            # exists, so that the old node answers ASK to each, from the first moment on: the
            # queue stands still until the slot has its new node, and never runs on half its keys.
        raise TryAgainError(f"the nodes do not agree on who has the slot {slot}")

    async def execute_together(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one round trip, over one connection, to the node of the first's key.

        Returns:
            The answer to each, errors of the store among them as values.

        Raises:
            RedisConnectionError, RedisTimeoutError: Some answer was lost.
        """
        if self._initialize:
            await self.initialize()
        slot = self.keyslot(commands[0][_BEFORE_KEY.get(commands[0][0], 1)])
        for _ in range(MAX_HOPS):
            node = self.node_of_slot(slot)
            sent = [PipelineCommand(at, *words) for at, words in enumerate(commands)]
            try:
                await node.execute_pipeline(sent)
                answers = [command.result for command in sent]
                for answer in answers:
                    if isinstance(answer, RedisConnectionError | RedisTimeoutError):
                        raise answer
            except (RedisConnectionError, RedisTimeoutError):
                self.doubt(node)
                raise
            moved = next((each for each in answers if isinstance(each, MovedError)), None)
            if moved is None:
                if any(isinstance(answer, ClusterDownError) for answer in answers):
                    self.doubt(node)
                return answers
            await self.nodes_manager.move_slot(moved)
        raise TryAgainError(f"the nodes do not agree on who has the slot {slot}")

    def node_of_slot(self, slot: int) -> ClusterNode:
        """Raise SlotNotCoveredError if no node has it."""
        try:
            return self.nodes_manager.slots_cache[slot][0]
        except (KeyError, IndexError):
            self.doubt()
            raise SlotNotCoveredError(f"no node of the cluster has the slot {slot}") from None

    async def look(self) -> str:
        """Ask every primary whether it serves.

        Returns:
            What is wrong with those that do not; "" if all do.

        Raises:
            RedisError, RedisClusterException: None does.
        """
        await self.initialize()
        nodes = self.get_primaries()
        answers = await asyncio.gather(*map(self._serves, nodes), return_exceptions=True)
        problems = [answer for answer in answers if answer is not None]
        if len(problems) == len(nodes):
            raise problems[0] if problems else ClusterDownError("the cluster has no primary")
        return "; ".join(
            f"{node.name}: {str(problem) or type(problem).__name__}"
            for node, problem in zip(nodes, answers, strict=True)
            if problem is not None
        )

    async def _serves(self, node: ClusterNode) -> None:
        try:
            async with asyncio.timeout(LOOK_S):
                try:
                    info = await node.execute_command("CLUSTER INFO")
                except NoPermissionError:
                    await node.execute_command("PING")
                    return
            # A node that is up refuses everything while too much of the cluster is missing.
            if info["cluster_state"] != "ok":
                raise ClusterDownError("the cluster is down")
        except (RedisError, OSError):
            self.doubt(node)
            raise

    def doubt(self, node: ClusterNode | None = None) -> None:
        """Learn the topology anew, in the background; ask a node that failed last."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(
                self._refresh(node.name if node is not None else None), name="cluster-topology"
            )

    async def _refresh(self, failed: str | None) -> None:
        try:
            await self.nodes_manager.initialize(last_failed_node_name=failed)
        except (RedisError, RedisClusterException, OSError) as error:
            log.debug("the cluster's topology is not known", error=str(error))
        await asyncio.sleep(REFRESH_PAUSE_S)

"""Shard channels of the store as calls, over any loss of connection.

One dedicated connection for each node that serves a wanted channel, one task that reads
it. Messages published while a connection is down are gone: `on_reset` tells the owner to
read afresh, after the subscription is in place again, so that no gap goes unseen.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.store.connection.connect import STORE_ERRORS, Connection
from jobwire_server.store.connection.link import BACKOFF_S, Channels, Link, Reader, log

CONFIRM_TIMEOUT_S = 5.0
"""How long `add` waits for the store's word."""


class Subscriber:
    """Keeps a set of shard channels subscribed.

    Args:
        connection: The store; the subscriber opens connections of its own to it.
        on_message: Called with channel and data, in the order of each channel. Must not block.
        on_reset: Called after subscriptions were restored: messages may have been missed.
    """

    def __init__(
        self,
        connection: Connection,
        on_message: Callable[[bytes, bytes], None],
        on_reset: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._reader = Reader(on_message, on_reset)
        self._channels = Channels()
        self._links: dict[str, Link] = {}
        self._pauses: dict[str, float] = {}
        self._moves: set[asyncio.Task[None]] = set()
        self._running = False

    async def start(self) -> None:
        """Allow subscriptions; connections open with the first channel."""
        self._running = True

    async def stop(self) -> None:
        """Close the connections and forget the channels; `add` calls in hand fail."""
        self._running = False
        tasks = [*self._moves, *(link.task for link in self._links.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._channels.clear()
        self._links.clear()

    async def add(self, channel: bytes) -> None:
        """Subscribe, and return once the store has confirmed it. Adding twice is harmless.

        Raises:
            StoreUnavailable: No confirmation within 5 s; the channel is then not wanted.
        """
        if not self._running:
            raise StoreUnavailable("the subscriber is not running")
        wanted, first = self._channels.want(channel)
        confirmed = wanted.confirmed
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT_S):
                if first:
                    await self._route(channel)
                await asyncio.shield(confirmed)
        except asyncio.CancelledError:
            # Nobody is on the way to subscribe to it.
            if wanted.home is None and self._channels.get(channel) is wanted:
                await self.remove(channel)
            raise
        except STORE_ERRORS as error:
            current = self._channels.get(channel)
            if current is not None and current.confirmed is confirmed:
                await self.remove(channel)
            raise StoreUnavailable(
                "the store did not confirm a subscription: it can't be reached or is failing over"
            ) from error

    async def remove(self, channel: bytes) -> None:
        """Unsubscribe; a message that is under way may still arrive. Unknown channels are fine."""
        found = self._channels.forget(channel, "the subscription was ended")
        if found is not None and found.home is not None:
            await found.home.leave(channel)

    async def _route(self, channel: bytes) -> None:
        node = await self._connection.node_of(channel)
        wanted = self._channels.get(channel)
        if wanted is None:  # removed meanwhile
            return
        link = self._links.get(node)
        if link is None or link.ended:
            link = self._links[node] = Link(
                self._connection, node, self._channels, self._reader, self._pauses, self._move
            )
        wanted.home = link
        await link.join(channel)

    def _move(self, channels: list[bytes]) -> None:
        """Find new homes for channels that their node no longer serves."""
        for channel in channels:
            wanted = self._channels.get(channel)
            if wanted is not None:
                wanted.home = None
        task = asyncio.create_task(self._find_homes(channels), name="subscriber-move")
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)

    async def _find_homes(self, channels: list[bytes]) -> None:
        left = deque(channel for channel in channels if self._channels.get(channel) is not None)
        delay = BACKOFF_S[0]
        while left:
            try:
                await self._connection.refresh_topology()
                while left:
                    await self._route(left[0])
                    left.popleft()
            except STORE_ERRORS as error:
                log.warning("no node for a subscription yet", error=str(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, BACKOFF_S[1])

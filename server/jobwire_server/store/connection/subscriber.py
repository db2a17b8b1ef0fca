"""Shard channels of the store as calls, over any loss of connection.

One dedicated connection for each node that serves a wanted channel, one task that reads
it. Messages published while a connection is down are gone: `on_reset` tells the owner to
read afresh, after the subscription is in place again, so that no gap goes unseen.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

import structlog
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import MovedError, NoPermissionError, RedisError, ResponseError
from structlog.typing import FilteringBoundLogger

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.store.connection.connect import STORE_ERRORS, Connection

CONFIRM_TIMEOUT_S = 5.0
"""How long `add` waits for the store's word."""
QUIET_S = 5.0
"""After so long without a message the connection is tried with a PING; after twice as long it
counts as dead, which no read of a half-open connection would ever tell."""
BACKOFF_S = (0.05, 2.0)
"""The first and the longest wait before the next attempt to connect."""
NODE_BACKOFF_S = 0.5
"""The longest where a cluster may have another node for the channels by then."""

log: FilteringBoundLogger = structlog.get_logger("jobwire.subscriber")


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
        self._on_message = on_message
        self._on_reset = on_reset
        self._wanted: dict[bytes, asyncio.Future[None]] = {}
        """Channel -> done once confirmed; a new future each time that it is lost."""
        self._lost: set[bytes] = set()
        """Wanted channels that were confirmed once and are not now."""
        self._homes: dict[bytes, _Link] = {}
        self._links: dict[str, _Link] = {}
        self._moves: set[asyncio.Task[None]] = set()
        self._pauses: dict[str, float] = {}
        """Node -> how long to wait after the next failure to connect to it."""
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
        for confirmed in self._wanted.values():
            _fail(confirmed, "the subscription was ended")
        self._wanted.clear()
        self._homes.clear()
        self._links.clear()
        self._lost.clear()

    async def add(self, channel: bytes) -> None:
        """Subscribe, and return once the store has confirmed it. Adding twice is harmless.

        Raises:
            StoreUnavailable: No confirmation within 5 s; the channel is then not wanted.
        """
        if not self._running:
            raise StoreUnavailable("the subscriber is not running")
        confirmed = self._wanted.get(channel)
        first = confirmed is None
        if confirmed is None:
            confirmed = self._wanted[channel] = _new_future()
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT_S):
                if first:
                    await self._route(channel)
                await asyncio.shield(confirmed)
        except asyncio.CancelledError:
            if channel not in self._homes:  # nobody is on the way to subscribe to it
                await self.remove(channel)
            raise
        except STORE_ERRORS as error:
            if self._wanted.get(channel) is confirmed:
                await self.remove(channel)
            raise StoreUnavailable(
                "the store did not confirm a subscription: it can't be reached or is failing over"
            ) from error

    async def remove(self, channel: bytes) -> None:
        """Unsubscribe; a message that is under way may still arrive. Unknown channels are fine."""
        confirmed = self._wanted.pop(channel, None)
        if confirmed is None:
            return
        self._lost.discard(channel)
        _fail(confirmed, "the subscription was ended")
        link = self._homes.pop(channel, None)
        if link is not None:
            await link.leave(channel)

    async def _route(self, channel: bytes) -> None:
        node = await self._connection.node_of(channel)
        if channel not in self._wanted:  # removed meanwhile
            return
        link = self._links.get(node)
        if link is None:
            link = self._links[node] = _Link(self, self._connection, node)
        self._homes[channel] = link
        await link.join(channel)

    def _move(self, channels: list[bytes]) -> None:
        """Find new homes for channels that their node no longer serves."""
        for channel in channels:
            self._homes.pop(channel, None)
        task = asyncio.create_task(self._find_homes(channels), name="subscriber-move")
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)

    async def _find_homes(self, channels: list[bytes]) -> None:
        left = deque(channel for channel in channels if channel in self._wanted)
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

    def _confirm(self, channel: bytes) -> bool:
        """Note a confirmation; True if the channel had been lost before."""
        confirmed = self._wanted.get(channel)
        if confirmed is not None and not confirmed.done():
            confirmed.set_result(None)
        if channel not in self._lost:
            return False
        self._lost.discard(channel)
        return True

    def _lose(self, channel: bytes) -> None:
        confirmed = self._wanted.get(channel)
        if confirmed is not None and confirmed.done():
            self._wanted[channel] = _new_future()
            self._lost.add(channel)

    def _refuse(self, channel: bytes, error: Exception) -> None:
        self._homes.pop(channel, None)
        confirmed = self._wanted.pop(channel, None)
        self._lost.discard(channel)
        log.error("the store refused a subscription", channel=channel.decode(), error=str(error))
        if confirmed is not None:
            _fail(confirmed, f"the store refused the subscription: {error}")

    def _tell(self, channel: bytes, data: bytes) -> None:
        try:
            self._on_message(channel, data)
        except Exception:  # a defect in one reader must not end the messages of all
            log.exception("a message could not be handled", channel=channel.decode())

    def _reset(self) -> None:
        try:
            self._on_reset()
        except Exception:
            log.exception("a reset could not be handled")


class _Link:
    """The connection to one node."""

    def __init__(self, owner: Subscriber, connection: Connection, node: str) -> None:
        self._owner = owner
        self._connection = connection
        self.node = node
        self.channels: set[bytes] = set()
        self._wire: AbstractConnection | None = None
        self._asked: deque[tuple[bytes, bytes]] = deque()
        """Commands whose answers are to come, in their order: (verb, channel)."""
        self._restored = False
        self.task = asyncio.create_task(self._run(), name=f"subscriber-{node or 'store'}")

    async def join(self, channel: bytes) -> None:
        self.channels.add(channel)
        if self._wire is not None:  # else the connect sends it
            await self._send(self._wire, b"SSUBSCRIBE", channel)

    async def leave(self, channel: bytes) -> None:
        self.channels.discard(channel)
        if self._wire is not None:
            await self._send(self._wire, b"SUNSUBSCRIBE", channel)

    async def _send(self, wire: AbstractConnection, verb: bytes, channel: bytes) -> None:
        self._asked.append((verb.lower(), channel))
        try:
            await wire.send_command(verb, channel, check_health=False)
        except STORE_ERRORS:
            # The reader sees the same loss, connects anew and subscribes to what is wanted.
            log.debug("a subscription command was not sent", channel=channel.decode())

    async def _run(self) -> None:
        pauses = self._owner._pauses  # outlive this link, which a node of a cluster has once
        while True:
            wire = None
            try:
                wire = self._connection.dedicated(self.node)
                await wire.connect()  # type: ignore[no-untyped-call]
                self._asked.clear()
                # Subscribed before `_wire` is set, so that `join` sends nothing twice; what
                # joins while this waits is in `channels` when the loop comes to it.
                sent: set[bytes] = set()
                while fresh := self.channels - sent:
                    sent |= fresh
                    for channel in fresh:
                        await self._send(wire, b"SSUBSCRIBE", channel)
                self._wire = wire
                for channel in sent - self.channels:
                    await self._send(wire, b"SUNSUBSCRIBE", channel)
                await self._read(wire)
            except STORE_ERRORS as error:
                self._drop()
                delay = pauses.get(self.node, BACKOFF_S[0])
                # A failover gives the channels to another node, which is to be found soon.
                pauses[self.node] = min(delay * 2, NODE_BACKOFF_S if self.node else BACKOFF_S[1])
                if not self.node or delay == BACKOFF_S[0]:
                    log.warning(
                        "subscriptions lost, connecting again", node=self.node, error=str(error)
                    )
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                if self.node:
                    # A failover may have given the channels to another node for good.
                    self._owner._links.pop(self.node, None)
                    self._owner._move(list(self.channels))
                    return
            finally:
                self._wire = None
                if wire is not None:
                    await wire.disconnect(nowait=True)

    def _drop(self) -> None:
        self._wire = None
        self._asked.clear()
        for channel in self.channels:
            self._owner._lose(channel)

    async def _read(self, wire: AbstractConnection) -> None:
        quiet = False
        while True:
            try:
                answer = await wire.read_response(disable_decoding=True, timeout=QUIET_S)
            except ResponseError as error:
                self._refused(error)
                continue
            if answer is None:
                if quiet:
                    raise RedisError(f"silent for {2 * QUIET_S:g} s")
                quiet = True
                await wire.send_command("PING", check_health=False)
                continue
            quiet = False
            if isinstance(answer, list) and len(answer) == 3:
                kind, channel, data = answer
                if kind == b"smessage":
                    self._owner._tell(channel, data)
                else:
                    self._answered(kind, channel)

    def _answered(self, verb: bytes, channel: bytes) -> None:
        if self._asked and self._asked[0] == (verb, channel):
            self._asked.popleft()
            if verb == b"ssubscribe" and channel in self.channels:
                # Not at the connect: a node that is up may refuse subscriptions for long.
                self._owner._pauses.pop(self.node, None)
                self._restored |= self._owner._confirm(channel)
        elif verb == b"sunsubscribe" and channel in self.channels:
            # Not asked for: the slot has moved to another node.
            self._owner._lose(channel)
            self.channels.discard(channel)
            self._owner._move([channel])
        if self._restored and not self._asked:
            self._restored = False
            self._owner._reset()

    def _refused(self, error: ResponseError) -> None:
        if not self._asked:
            raise error
        verb, channel = self._asked.popleft()
        if verb != b"ssubscribe" or channel not in self.channels:
            return
        if isinstance(error, MovedError):
            self.channels.discard(channel)
            self._owner._lose(channel)
            self._owner._move([channel])
        elif isinstance(error, NoPermissionError):
            self.channels.discard(channel)
            self._owner._refuse(channel, error)
        else:  # a passing condition, such as a cluster that is down: connect anew
            raise error


def _new_future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _fail(confirmed: asyncio.Future[None], message: str) -> None:
    if not confirmed.done():
        confirmed.set_exception(StoreUnavailable(message))
        confirmed.exception()  # looked at: nobody may be waiting for it

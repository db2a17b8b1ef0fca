"""A subscriber's connection to one node, and the book of channels that its links share."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import MovedError, NoPermissionError, RedisError, ResponseError
from structlog.typing import FilteringBoundLogger

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.store.connection.connect import STORE_ERRORS, Connection

QUIET_S = 5.0
"""After so long without a message the connection is tried with a PING; after twice as long it
counts as dead, which no read of a half-open connection would ever tell."""
BACKOFF_S = (0.05, 2.0)
"""The first and the longest wait before the next attempt to connect."""
NODE_BACKOFF_S = 0.5
"""The longest where a cluster may have another node for the channels by then."""

log: FilteringBoundLogger = structlog.get_logger("jobwire.subscriber")


class Reader:
    """Whoever reads the messages.

    Args:
        on_message: Called with channel and data, in the order of each channel. Must not block.
        on_reset: Called after subscriptions were restored: messages may have been missed.
    """

    def __init__(
        self, on_message: Callable[[bytes, bytes], None], on_reset: Callable[[], None]
    ) -> None:
        self._on_message = on_message
        self._on_reset = on_reset

    def message(self, channel: bytes, data: bytes) -> None:
        """Hand on one message."""
        try:
            self._on_message(channel, data)
        except Exception:  # a defect in one reader must not end the messages of all
            log.exception("a message could not be handled", channel=channel.decode())

    def reset(self) -> None:
        """Say that messages may have been missed."""
        try:
            self._on_reset()
        except Exception:
            log.exception("a reset could not be handled")


@dataclass(slots=True)
class Channel:
    """A channel that somebody wants."""

    confirmed: asyncio.Future[None]
    """Done once the store has confirmed it; a new future each time that it is lost."""
    lost: bool = False
    """It was confirmed once and is not now."""
    home: Link | None = None
    """The link that subscribes to it."""


class Channels:
    """The channels that are wanted, and what the store has said about each."""

    def __init__(self) -> None:
        self._wanted: dict[bytes, Channel] = {}

    def want(self, channel: bytes) -> tuple[Channel, bool]:
        """Note that somebody wants a channel; return it, and True if nobody did before."""
        found = self._wanted.get(channel)
        if found is not None:
            return found, False
        made = self._wanted[channel] = Channel(_new_future())
        return made, True

    def get(self, channel: bytes) -> Channel | None:
        """Return a channel, None if nobody wants it."""
        return self._wanted.get(channel)

    def forget(self, channel: bytes, why: str) -> Channel | None:
        """Drop a channel, and fail whoever waits for it; None if nobody wants it."""
        found = self._wanted.pop(channel, None)
        if found is not None and not found.confirmed.done():
            found.confirmed.set_exception(StoreUnavailable(why))
            found.confirmed.exception()  # looked at: nobody may be waiting for it
        return found

    def clear(self) -> None:
        """Drop all channels."""
        for channel in [*self._wanted]:
            self.forget(channel, "the subscription was ended")

    def confirm(self, channel: bytes) -> bool:
        """Note a confirmation; True if the channel had been lost before."""
        found = self._wanted.get(channel)
        if found is None:
            return False
        if not found.confirmed.done():
            found.confirmed.set_result(None)
        restored, found.lost = found.lost, False
        return restored

    def lose(self, channel: bytes) -> None:
        """Note that a channel has to be confirmed anew."""
        found = self._wanted.get(channel)
        if found is not None and found.confirmed.done():
            found.confirmed = _new_future()
            found.lost = True

    def refuse(self, channel: bytes, error: Exception) -> None:
        """Drop a channel that the store does not allow."""
        log.error("the store refused a subscription", channel=channel.decode(), error=str(error))
        self.forget(channel, f"the store refused the subscription: {error}")


class Link:
    """The connection to one node.

    Args:
        connection: The store.
        node: Which one; '' where there is only one.
        channels: The book, shared with the other links.
        reader: Who reads the messages.
        pauses: Node -> how long to wait after the next failure to connect to it. They outlive the
            link, which a node of a cluster may have once.
        on_moved: Called with channels that the node no longer serves.
    """

    def __init__(
        self,
        connection: Connection,
        node: str,
        channels: Channels,
        reader: Reader,
        pauses: dict[str, float],
        on_moved: Callable[[list[bytes]], None],
    ) -> None:
        self._connection = connection
        self.node = node
        self._book = channels
        self._reader = reader
        self._pauses = pauses
        self._on_moved = on_moved
        self.ended = False
        """Its node was given up; the channels need another link."""
        self.channels: set[bytes] = set()
        self._wire: AbstractConnection | None = None
        self._asked: deque[tuple[bytes, bytes]] = deque()
        """Commands whose answers are to come, in their order: (verb, channel)."""
        self._restored = False
        self.task = asyncio.create_task(self._run(), name=f"subscriber-{node or 'store'}")

    async def join(self, channel: bytes) -> None:
        """Subscribe to a channel."""
        self.channels.add(channel)
        if self._wire is not None:  # else the connect sends it
            await self._send(self._wire, b"SSUBSCRIBE", channel)

    async def leave(self, channel: bytes) -> None:
        """End a subscription."""
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
        pauses = self._pauses
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
                    self.ended = True
                    self._on_moved(list(self.channels))
                    return
            finally:
                self._wire = None
                if wire is not None:
                    await wire.disconnect(nowait=True)

    def _drop(self) -> None:
        self._wire = None
        self._asked.clear()
        for channel in self.channels:
            self._book.lose(channel)

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
                    self._reader.message(channel, data)
                else:
                    self._answered(kind, channel)

    def _answered(self, verb: bytes, channel: bytes) -> None:
        if self._asked and self._asked[0] == (verb, channel):
            self._asked.popleft()
            if verb == b"ssubscribe" and channel in self.channels:
                # Not at the connect: a node that is up may refuse subscriptions for long.
                self._pauses.pop(self.node, None)
                self._restored |= self._book.confirm(channel)
        elif verb == b"sunsubscribe" and channel in self.channels:
            # Not asked for: the slot has moved to another node.
            self._book.lose(channel)
            self.channels.discard(channel)
            self._on_moved([channel])
        if self._restored and not self._asked:
            self._restored = False
            self._reader.reset()

    def _refused(self, error: ResponseError) -> None:
        if not self._asked:
            raise error
        verb, channel = self._asked.popleft()
        if verb != b"ssubscribe" or channel not in self.channels:
            return
        if isinstance(error, MovedError):
            self.channels.discard(channel)
            self._book.lose(channel)
            self._on_moved([channel])
        elif isinstance(error, NoPermissionError):
            self.channels.discard(channel)
            self._book.refuse(channel, error)
        else:  # a passing condition, such as a cluster that is down: connect anew
            raise error


def _new_future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()

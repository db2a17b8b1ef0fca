"""Listeners to channels of the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jobwire_server.store.connection.connect import Connection
from jobwire_server.store.connection.subscriber import Subscriber


@dataclass(frozen=True, slots=True)
class Listener:
    """What to call for messages of one channel."""

    on_message: Callable[[bytes], None]
    on_reset: Callable[[], None]
    """Messages may have been missed: read afresh."""


class Notices:
    """Keeps one subscription for each channel, however many listeners it has."""

    def __init__(self, connection: Connection) -> None:
        self._listeners: dict[bytes, list[Listener]] = {}
        self._subscriber = Subscriber(connection, self._dispatch, self._reset)

    async def start(self) -> None:
        """Allow subscriptions. Called before the first of them."""
        await self._subscriber.start()

    async def stop(self) -> None:
        """End all subscriptions."""
        await self._subscriber.stop()
        self._listeners.clear()

    async def listen(self, channel: str, listener: Listener) -> None:
        """Return once messages on the channel arrive.

        Raises:
            StoreUnavailable: The store did not confirm the subscription.
        """
        name = channel.encode()
        self._listeners.setdefault(name, []).append(listener)
        try:
            await self._subscriber.add(name)
        except BaseException:
            await self._drop(name, listener)
            raise

    async def silence(self, channel: str, listener: Listener | None = None) -> None:
        """End the messages of a channel for one listener, or for all; unknown ones are fine."""
        name = channel.encode()
        if listener is None:
            self._listeners.pop(name, None)
            await self._subscriber.remove(name)
        else:
            await self._drop(name, listener)

    def listeners(self, channel: str) -> int:
        """Return how many listen to a channel."""
        return len(self._listeners.get(channel.encode(), ()))

    async def _drop(self, name: bytes, listener: Listener) -> None:
        listeners = self._listeners.get(name, [])
        if listener in listeners:
            listeners.remove(listener)
            if not listeners:
                del self._listeners[name]
                await self._subscriber.remove(name)

    def _dispatch(self, channel: bytes, data: bytes) -> None:
        for listener in self._listeners.get(channel, ()):
            listener.on_message(data)

    def _reset(self) -> None:
        for listeners in [*self._listeners.values()]:
            for listener in [*listeners]:
                listener.on_reset()

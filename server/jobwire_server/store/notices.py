"""Who hears which channel of the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jobwire_server.store.connect import Connection
from jobwire_server.store.subscriber import Subscriber


@dataclass(frozen=True, slots=True)
class Listener:
    """What to call for one channel."""

    on_message: Callable[[bytes], None]
    on_reset: Callable[[], None]
    """Messages may have been missed: read afresh."""


class Notices:
    """One subscription of this process for each channel, however many listen behind it."""

    def __init__(self, connection: Connection) -> None:
        self._listeners: dict[bytes, Listener] = {}
        self._subscriber = Subscriber(connection, self._dispatch, self._reset)

    async def start(self) -> None:
        """Allows subscriptions."""
        await self._subscriber.start()

    async def stop(self) -> None:
        """Ends all of them."""
        await self._subscriber.stop()
        self._listeners.clear()

    async def listen(self, channel: str, listener: Listener) -> None:
        """Returns once messages on the channel arrive.

        Raises:
            StoreUnavailable: The store did not confirm.
        """
        name = channel.encode()
        self._listeners[name] = listener
        try:
            await self._subscriber.add(name)
        except BaseException:
            if self._listeners.get(name) is listener:
                del self._listeners[name]
            raise

    async def silence(self, channel: str) -> None:
        """Ends the messages of a channel; tolerates one that is not heard."""
        self._listeners.pop(channel.encode(), None)
        await self._subscriber.remove(channel.encode())

    def _dispatch(self, channel: bytes, data: bytes) -> None:
        listener = self._listeners.get(channel)
        if listener is not None:
            listener.on_message(data)

    def _reset(self) -> None:
        for listener in [*self._listeners.values()]:
            listener.on_reset()

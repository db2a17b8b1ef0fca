"""What the channels of both clients have in common.

The channel of a client is made when a call needs it, where the call runs: an asyncio channel
belongs to one event loop, and a channel of any kind to the process that opened it. So one client
serves several loops, one after the other or in threads at once, and works in a forked child.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import grpc
from grpc import aio

from jobwire._connection import ConnectionOptions
from jobwire._surroundings import forks, leave_behind
from jobwire.errors import CallError

C = TypeVar("C", bound=aio.Channel | grpc.Channel)

# How long a channel whose names have moved is kept for the calls that it carries.
RETIREMENT_S = 300.0


class Opened(Generic[C]):
    """A channel, what it was opened for, its methods that were called, and its streams."""

    __slots__ = ("channel", "methods", "streams", "target")

    def __init__(self, channel: C, target: str | None) -> None:
        self.channel = channel
        self.target = target
        self.methods: dict[Method, Callable[..., Any]] = {}
        self.streams: WeakSet[Any] = WeakSet()


class Method:
    """A method of the contract, on whichever channel is right when it is called."""

    __slots__ = ("_channels", "arguments", "kind")

    def __init__(self, channels: ChannelsOf[Any], kind: str, arguments: Any) -> None:
        self._channels = channels
        self.kind = kind
        self.arguments = arguments

    def __call__(self, request: Any, **options: Any) -> Any:
        opened = self._channels.opened()
        method = opened.methods.get(self)
        if method is None:
            positional, named = self.arguments
            method = getattr(opened.channel, self.kind)(*positional, **named)
            opened.methods[self] = method
        call = method(request, **options)
        if self.kind == "unary_stream":
            self._channels.note(opened, call)
        return call


class ChannelsOf(Generic[C]):
    """The channels of a client; stubs take it for one.

    Args:
        options: Where the servers are.
        channel: An open channel to use in place of any other; it stays the caller's.

    Attributes:
        closings: How often `close` was called.

    Raises:
        ValueError: An address is malformed.
    """

    def __init__(self, options: ConnectionOptions, channel: C | None = None) -> None:
        self._options = options
        self._given: Opened[C] | None = None if channel is None else Opened(channel, None)
        self._route = options.route() if channel is None else None
        self._forks = forks()
        self._opening = threading.Lock()
        self._retired: list[tuple[float, C]] = []
        self.closings = 0

    def unary_unary(self, *positional: Any, **named: Any) -> Method:
        """Stand for a method that answers once."""
        return Method(self, "unary_unary", (positional, named))

    def unary_stream(self, *positional: Any, **named: Any) -> Method:
        """Stand for a method that answers with a stream."""
        return Method(self, "unary_stream", (positional, named))

    def stream_stream(self, *positional: Any, **named: Any) -> Method:
        """Stand for a method with streams both ways."""
        return Method(self, "stream_stream", (positional, named))

    def opened(self) -> Opened[C]:
        """Return the channel for the caller's loop and process, opened if need be."""
        raise NotImplementedError

    def note(self, opened: Opened[C], stream: Any) -> None:
        """Take note of a stream."""
        raise NotImplementedError

    def suspect(self, error: CallError) -> None:
        """Look names up again if a call found no server."""
        if self._route is not None and not error.reason:
            self._route.suspect()

    def _in_this_process(self) -> None:
        """Leave the parent's channels alone after a fork. No other thread runs yet."""
        if self._forks == forks():
            return
        self._forks = forks()
        leave_behind(self._given, self._retired, self._forget())
        self._opening = threading.Lock()
        self._retired = []
        if self._given is not None:
            raise RuntimeError(
                "this client was given a channel, which can't be used after a fork: give another"
                " client one that was opened here"
            )
        self._route = self._options.route()

    def _forget(self) -> object:
        raise NotImplementedError

    def _retire(self, channel: C) -> list[C]:
        """Put a channel aside; return those that were put aside long ago."""
        now = time.monotonic()
        late = [each for since, each in self._retired if now - since > RETIREMENT_S]
        self._retired = [kept for kept in self._retired if now - kept[0] <= RETIREMENT_S]
        self._retired.append((now, channel))
        return late

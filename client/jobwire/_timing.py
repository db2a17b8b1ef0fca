"""What differs between the two clients and has no common spelling: waits and channels.

The channel of a client is made when a call needs it, where the call runs: an asyncio channel
belongs to one event loop, and a channel of any kind to the process that opened it. So one client
serves several loops, one after the other or in threads at once, and goes on in a forked child.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import grpc
from grpc import aio

from jobwire._children import refuse_second_call
from jobwire._connection import CHANNEL_OPTIONS, ConnectionOptions
from jobwire._route import Route
from jobwire._surroundings import (
    check_asyncio,
    expect_several_loops,
    forks,
    leave_behind,
    note_stream,
    suit_threads,
)
from jobwire.errors import CallError, ClientClosed, from_rpc_error

C = TypeVar("C", bound=aio.Channel | grpc.Channel)

# A channel whose names have moved is kept for the calls that it carries, at most so long.
RETIREMENT_S = 300.0
_CANCELLED = grpc.StatusCode.CANCELLED


async def async_sleep(seconds: float) -> None:
    """Waits without blocking the loop."""
    await asyncio.sleep(seconds)


def sync_sleep(seconds: float) -> None:
    """Waits, blocking the thread."""
    time.sleep(seconds)


def open_async_channel(options: ConnectionOptions) -> aio.Channel:
    """Opens an asyncio channel for one address; call it where the loop runs.

    Raises:
        ValueError: The address is malformed.
        Unavailable: None of several names can be resolved.
        RuntimeError: gRPC's asyncio can't be used here.
    """
    route = options.route()
    if route.target is None:
        route.look()
    return _open_async(options, route)


def open_sync_channel(options: ConnectionOptions) -> grpc.Channel:
    """Opens a channel for threads.

    Raises:
        ValueError: The address is malformed.
        Unavailable: None of several names can be resolved.
        RuntimeError: eventlet took the place of threads.
    """
    route = options.route()
    if route.target is None:
        route.look()
    return _open_sync(options, route)


def _open_async(options: ConnectionOptions, route: Route) -> aio.Channel:
    refuse_second_call()
    check_asyncio()
    assert route.target is not None
    arguments = [*CHANNEL_OPTIONS, *route.options]
    credentials = options.channel_credentials()
    if credentials is None:
        return aio.insecure_channel(route.target, options=arguments)
    return aio.secure_channel(route.target, credentials, options=arguments)


def _open_sync(options: ConnectionOptions, route: Route) -> grpc.Channel:
    refuse_second_call()
    suit_threads()
    assert route.target is not None
    arguments = [*CHANNEL_OPTIONS, *route.options]
    credentials = options.channel_credentials()
    if credentials is None:
        return grpc.insecure_channel(route.target, options=arguments)
    return grpc.secure_channel(route.target, credentials, options=arguments)


class _Opened(Generic[C]):
    """A channel, what it was opened for, its methods that were called, and its streams."""

    __slots__ = ("channel", "methods", "streams", "target")

    def __init__(self, channel: C, target: str | None) -> None:
        self.channel = channel
        self.target = target
        self.methods: dict[_Method, Callable[..., Any]] = {}
        self.streams: WeakSet[Any] = WeakSet()


class _Method:
    """A method of the contract, on whichever channel is right when it is called."""

    __slots__ = ("_channels", "arguments", "kind")

    def __init__(self, channels: _Channels[Any], kind: str, arguments: Any) -> None:
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


class _Channels(Generic[C]):
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
        self._given: _Opened[C] | None = None if channel is None else _Opened(channel, None)
        self._route = options.route() if channel is None else None
        self._forks = forks()
        self._opening = threading.Lock()
        self._retired: list[tuple[float, C]] = []
        self.closings = 0

    def unary_unary(self, *positional: Any, **named: Any) -> _Method:
        """Stands for a method that answers once."""
        return _Method(self, "unary_unary", (positional, named))

    def unary_stream(self, *positional: Any, **named: Any) -> _Method:
        """Stands for a method that answers with a stream."""
        return _Method(self, "unary_stream", (positional, named))

    def stream_stream(self, *positional: Any, **named: Any) -> _Method:
        """Stands for a method with streams both ways."""
        return _Method(self, "stream_stream", (positional, named))

    def opened(self) -> _Opened[C]:
        """Returns the channel for the caller's loop and process, opened if need be."""
        raise NotImplementedError

    def note(self, opened: _Opened[C], stream: Any) -> None:
        """Takes note of a stream."""
        raise NotImplementedError

    def suspect(self, error: CallError) -> None:
        """Has names looked up again if a call found no server."""
        if self._route is not None and not error.reason:
            self._route.suspect()

    def _in_this_process(self) -> None:
        """Leaves the parent's channels alone after a fork. No other thread runs yet."""
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
        """Puts a channel aside; returns those that were put aside long ago."""
        now = time.monotonic()
        late = [each for since, each in self._retired if now - since > RETIREMENT_S]
        self._retired = [kept for kept in self._retired if now - kept[0] <= RETIREMENT_S]
        self._retired.append((now, channel))
        return late


class AsyncChannels(_Channels[aio.Channel]):
    """One channel for each event loop that is in use; see `_Channels`."""

    def __init__(self, options: ConnectionOptions, channel: aio.Channel | None = None) -> None:
        super().__init__(options, channel)
        self._by_loop: dict[asyncio.AbstractEventLoop, _Opened[aio.Channel]] = {}

    async def ready(self) -> None:
        """Waits until names are looked up; returns at once where they were.

        Raises:
            Unavailable: None can be resolved.
        """
        self._in_this_process()
        if self._route is not None:
            if self._route.target is None:
                await asyncio.to_thread(self._route.look)
            else:
                self._route.refresh()

    def opened(self) -> _Opened[aio.Channel]:
        if self._given is not None:
            return self._given
        loop = asyncio.get_running_loop()
        opened = self._by_loop.get(loop)
        assert self._route is not None
        if opened is not None and opened.target == self._route.target:
            return opened
        with self._opening:
            if opened is not None:
                # Let go of, it goes with the last call on it.
                self._retire(opened.channel)
            if self._by_loop.keys() - {loop}:
                expect_several_loops()
            made = _Opened(_open_async(self._options, self._route), self._route.target)
            # What belongs to a loop that has ended can only be dropped.
            kept = {each: of for each, of in self._by_loop.items() if not each.is_closed()}
            self._by_loop = {**kept, loop: made}
        return made

    def note(self, opened: _Opened[aio.Channel], stream: Any) -> None:
        opened.streams.add(stream)

    async def close(self) -> None:
        """Closes what was opened here; calls under way end with `ClientClosed`."""
        self._in_this_process()
        if self._given is not None:
            return
        with self._opening:
            self.closings += 1
            by_loop, self._by_loop = self._by_loop, {}
            retired, self._retired = self._retired, []
        mine = asyncio.get_running_loop()
        for loop, opened in by_loop.items():
            if loop is not mine and not loop.is_closed():
                asyncio.run_coroutine_threadsafe(_end(opened), loop)
        if mine in by_loop:
            await _end(by_loop[mine])
        del retired

    def error_of(self, raised: BaseException, closings: int) -> CallError | None:
        """Translates what a call raised; None for what is not about the call.

        Args:
            raised: By the call, or by `ready`.
            closings: As it was when the call began.
        """
        if isinstance(raised, CallError):
            return raised
        if isinstance(raised, grpc.RpcError):
            return from_rpc_error(raised)
        if self.closings != closings and isinstance(
            raised, asyncio.CancelledError | aio.UsageError | ValueError
        ):
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                return ClientClosed()
        return None

    def _forget(self) -> object:
        by_loop, self._by_loop = self._by_loop, {}
        return by_loop


async def _end(opened: _Opened[aio.Channel]) -> None:
    # The channel's own closing finds the calls that answer once, but no streams.
    for stream in [*opened.streams]:
        stream.cancel()
    await opened.channel.close()


class Channels(_Channels[grpc.Channel]):
    """The channel of this process; see `_Channels`."""

    def __init__(self, options: ConnectionOptions, channel: grpc.Channel | None = None) -> None:
        super().__init__(options, channel)
        self._mine: _Opened[grpc.Channel] | None = None

    def ready(self) -> None:
        """Waits until names are looked up; returns at once where they were.

        Raises:
            Unavailable: None can be resolved.
        """
        self._in_this_process()
        if self._route is not None:
            if self._route.target is None:
                self._route.look()
            else:
                self._route.refresh()

    def opened(self) -> _Opened[grpc.Channel]:
        if self._given is not None:
            return self._given
        opened = self._mine
        assert self._route is not None
        if opened is not None and opened.target == self._route.target:
            return opened
        with self._opening:
            if self._mine is opened:
                if opened is not None:
                    for late in self._retire(opened.channel):
                        late.close()
                made = _open_sync(self._options, self._route)
                self._mine = _Opened(made, self._route.target)
            assert self._mine is not None
            return self._mine

    def note(self, opened: _Opened[grpc.Channel], stream: Any) -> None:
        note_stream(stream)

    def close(self) -> None:
        """Closes what was opened here; calls under way end with `ClientClosed`."""
        self._in_this_process()
        if self._given is not None:
            return
        with self._opening:
            self.closings += 1
            opened, self._mine = self._mine, None
            retired, self._retired = self._retired, []
        for channel in [*(each for _, each in retired), *([opened.channel] if opened else [])]:
            channel.close()

    def error_of(self, raised: BaseException, closings: int) -> CallError | None:
        """Translates what a call raised; None for what is not about the call.

        Args:
            raised: By the call, or by `ready`.
            closings: As it was when the call began.
        """
        if isinstance(raised, CallError):
            return raised
        closed = self.closings != closings
        if isinstance(raised, grpc.RpcError):
            error = from_rpc_error(raised)
            return ClientClosed() if closed and error.code is _CANCELLED else error
        return ClientClosed() if closed and isinstance(raised, ValueError) else None

    def _forget(self) -> object:
        mine, self._mine = self._mine, None
        return mine

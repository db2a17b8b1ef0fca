"""Channels for threads: one for the process."""

from __future__ import annotations

from typing import Any

import grpc

from jobwire._channels.base import ChannelsOf, Opened
from jobwire._children import refuse_second_call
from jobwire._connection import CHANNEL_OPTIONS, ConnectionOptions
from jobwire._route import Route
from jobwire._surroundings import note_stream, suit_threads
from jobwire.errors import CallError, ClientClosed, from_rpc_error

_CANCELLED = grpc.StatusCode.CANCELLED


def open_sync_channel(options: ConnectionOptions) -> grpc.Channel:
    """Open a channel for threads.

    Raises:
        ValueError: The address is malformed.
        Unavailable: None of several names can be resolved.
        RuntimeError: eventlet replaced threads.
    """
    route = options.route()
    if route.target is None:
        route.look()
    return _open_sync(options, route)


def _open_sync(options: ConnectionOptions, route: Route) -> grpc.Channel:
    refuse_second_call()
    suit_threads()
    assert route.target is not None
    arguments = [*CHANNEL_OPTIONS, *route.options]
    credentials = options.channel_credentials()
    if credentials is None:
        return grpc.insecure_channel(route.target, options=arguments)
    return grpc.secure_channel(route.target, credentials, options=arguments)


class Channels(ChannelsOf[grpc.Channel]):
    """The channel of this process; see `ChannelsOf`."""

    def __init__(self, options: ConnectionOptions, channel: grpc.Channel | None = None) -> None:
        super().__init__(options, channel)
        self._mine: Opened[grpc.Channel] | None = None

    def ready(self) -> None:
        """Wait until names are looked up; return at once where they were.

        Raises:
            Unavailable: None can be resolved.
        """
        self._in_this_process()
        if self._route is not None:
            if self._route.target is None:
                self._route.look()
            else:
                self._route.refresh()

    def opened(self) -> Opened[grpc.Channel]:
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
                self._mine = Opened(made, self._route.target)
            assert self._mine is not None
            return self._mine

    def note(self, opened: Opened[grpc.Channel], stream: Any) -> None:
        note_stream(stream)

    def close(self) -> None:
        """Close what was opened here; calls under way end with `ClientClosed`."""
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
        """Translate what a call raised; None for what is not about the call.

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

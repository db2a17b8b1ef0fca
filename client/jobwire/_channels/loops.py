"""Channels of asyncio: one for each event loop that is in use."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc import aio

from jobwire._channels.base import ChannelsOf, Opened
from jobwire._children import refuse_second_call
from jobwire._connection import CHANNEL_OPTIONS, ConnectionOptions
from jobwire._route import Route
from jobwire._surroundings import check_asyncio, expect_several_loops
from jobwire.errors import CallError, ClientClosed, from_rpc_error


def open_async_channel(options: ConnectionOptions) -> aio.Channel:
    """Open an asyncio channel for one address; call it where the loop runs.

    Raises:
        ValueError: The address is malformed.
        Unavailable: None of several names can be resolved.
        RuntimeError: gRPC's asyncio can't be used here.
    """
    route = options.route()
    if route.target is None:
        route.look()
    return _open_async(options, route)


def _open_async(options: ConnectionOptions, route: Route) -> aio.Channel:
    refuse_second_call()
    check_asyncio()
    assert route.target is not None
    arguments = [*CHANNEL_OPTIONS, *route.options]
    credentials = options.channel_credentials()
    if credentials is None:
        return aio.insecure_channel(route.target, options=arguments)
    return aio.secure_channel(route.target, credentials, options=arguments)


class AsyncChannels(ChannelsOf[aio.Channel]):
    """One channel for each event loop that is in use; see `ChannelsOf`."""

    def __init__(self, options: ConnectionOptions, channel: aio.Channel | None = None) -> None:
        super().__init__(options, channel)
        self._by_loop: dict[asyncio.AbstractEventLoop, Opened[aio.Channel]] = {}

    async def ready(self) -> None:
        """Wait until names are looked up; return at once where they were.

        Raises:
            Unavailable: None can be resolved.
        """
        self._in_this_process()
        if self._route is not None:
            if self._route.target is None:
                await asyncio.to_thread(self._route.look)
            else:
                self._route.refresh()

    def opened(self) -> Opened[aio.Channel]:
        if self._given is not None:
            return self._given
        loop = asyncio.get_running_loop()
        opened = self._by_loop.get(loop)
        assert self._route is not None
        if opened is not None and opened.target == self._route.target:
            return opened
        with self._opening:
            if opened is not None:
                # Nobody holds it, so it goes with its last call.
                self._retire(opened.channel)
            if self._by_loop.keys() - {loop}:
                expect_several_loops()
            made = Opened(_open_async(self._options, self._route), self._route.target)
            # What belongs to a loop that has ended can only be dropped.
            kept = {each: of for each, of in self._by_loop.items() if not each.is_closed()}
            self._by_loop = {**kept, loop: made}
        return made

    def note(self, opened: Opened[aio.Channel], stream: Any) -> None:
        opened.streams.add(stream)

    async def close(self) -> None:
        """Close what was opened here; calls under way end with `ClientClosed`."""
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
        """Translate what a call raised; None for what is not about the call.

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


async def _end(opened: Opened[aio.Channel]) -> None:
    # Closing a channel ends its unary calls, but not its streams.
    for stream in [*opened.streams]:
        stream.cancel()
    await opened.channel.close()

"""A producer's stream on an event loop, and those who wait for it there."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import grpc
from grpc import aio

from jobwire._producing.line import Line
from jobwire._producing.parcels import (
    MAX_KEPT,
    METHOD,
    Follower,
    News,
    Outcome,
    Parcel,
)
from jobwire._surroundings import note_end
from jobwire.errors import CallError, from_rpc_error
from jobwire.v1.job_service_pb2 import ProduceResponse

log = logging.getLogger("jobwire.client")

GOODBYE_S = 1.0
"""How long the server may take to end a stream that is left."""


class LoopParcel(Parcel):
    """A parcel that a task waits for.

    Attributes:
        future: Its outcome.
    """

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[Outcome], data: bytes, queue: str, **more: Any):
        super().__init__(data, queue, **more)
        self.future = future

    @property
    def left(self) -> bool:
        return self.future.done()

    def settle(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)


class LoopFollower(Follower):
    """Waits for the end of a job.

    Attributes:
        future: It.
    """

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[News]) -> None:
        self.future = future

    def hear(self, news: News) -> None:
        if not self.future.done():
            self.future.set_result(news)


class LoopChanges(Follower):
    """Waits for changes of a job.

    Args:
        full: True: in the FULL view.
    """

    __slots__ = ("_future", "_news", "full")
    changes = True

    def __init__(self, full: bool) -> None:
        self.full = full
        # Whoever takes them more slowly than they come misses some, and never the last.
        self._news: deque[News] = deque(maxlen=MAX_KEPT)
        self._future: asyncio.Future[None] | None = None

    def hear(self, news: News) -> None:
        self._news.append(news)
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def next(self, timeout_s: float | None) -> News | None:
        """Wait for the next one; return None if `timeout_s` passes first."""
        if not self._news:
            loop = asyncio.get_running_loop()
            future = self._future = loop.create_future()
            timer = None
            if timeout_s is not None:
                timer = loop.call_later(timeout_s, _let_go, future)
            try:
                await future
            finally:
                if timer is not None:
                    timer.cancel()
        return self._news.popleft() if self._news else None


def _let_go(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class LoopStream:
    """One stream.

    Args:
        line: What is known of it.
        channel: Of its own, or the caller's.
        is_own: True: the channel ends with it.
        metadata: Sent with the call.
        heard: Called with each answer.
        written: Called when another frame may be written.
        ended: Called once, with what it ended with.
    """

    def __init__(
        self,
        line: Line,
        channel: aio.Channel,
        is_own: bool,
        metadata: tuple[tuple[str, str], ...],
        heard: Callable[[LoopStream, ProduceResponse], None],
        written: Callable[[], None],
        ended: Callable[[LoopStream, CallError | None, bool], None],
    ) -> None:
        self.line = line
        self.is_writing = False
        self._channel = channel
        self._is_own = is_own
        self._heard = heard
        self._written = written
        self._ended = ended
        self._is_leaving = self._has_said_goodbye = False
        # Frames are bytes already.
        method: Any = channel.stream_stream(
            METHOD, request_serializer=None, response_deserializer=ProduceResponse.FromString
        )
        self._call: Any = method(metadata=metadata)
        self.reading = asyncio.create_task(self._read(), name="jobwire-produce")

    async def _read(self) -> None:
        error: CallError | None = None
        shut = False
        try:
            read, heard = self._call.read, self._heard
            while (response := await read()) is not aio.EOF:
                heard(self, response)
        except aio.AioRpcError as raised:
            error = from_rpc_error(raised)
        except asyncio.CancelledError:
            # A call that was cancelled here says the same as a task that is.
            shut = self.reading.cancelling() > 0
            if shut:
                raise
        except Exception as raised:
            log.exception("a producer's stream can't be read")
            error = CallError(f"the stream can't be read: {raised}", code=grpc.StatusCode.INTERNAL)
        finally:
            self._call.cancel()
            self._ended(self, error, shut)
            if self._is_own and not shut:
                await self._channel.close()
            note_end()

    def write(self, frame: bytes) -> None:
        """Begin to write; only while `is_writing` is False."""
        self.is_writing = True
        self._go_on(self._call.write(frame))

    def _go_on(self, writing: Coroutine[Any, Any, None], _: object = None) -> None:
        """Take a write to where it waits, or to its end.

        This is what a task would do, one turn of the loop sooner: the bytes leave before the caller
        begins to wait for the answer.
        """
        try:
            waits_for: Any = writing.send(None)
        except StopIteration:
            self.is_writing = False
            if self._is_leaving:
                self._say_goodbye()
            else:
                self._written()
        except (Exception, asyncio.CancelledError):
            # The stream has ended, or does now, and the reader tells of it.
            self._call.cancel()
        else:
            waits_for.add_done_callback(partial(self._go_on, writing))

    def leave(self) -> None:
        """Say that nothing more will come, and let the server end the stream."""
        if not self._is_leaving:
            self._is_leaving = True
            asyncio.get_running_loop().call_later(GOODBYE_S, self.cancel)
            if not self.is_writing:
                self._say_goodbye()

    def _say_goodbye(self) -> None:
        if not self._has_said_goodbye:
            self.is_writing = self._has_said_goodbye = True
            self._go_on(self._call.done_writing())

    def cancel(self) -> None:
        """End it at once."""
        self._call.cancel()

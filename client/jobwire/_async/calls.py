"""One channel, and the two ways to use it: a call that retries, a watch that reconnects."""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeAlias, TypeVar

import grpc

from jobwire._connection import ConnectionOptions
from jobwire._retry import Backoff, Deadline, worth_retrying
from jobwire._timing import async_sleep, open_async_channel
from jobwire.errors import CallError, DeadlineExceeded, from_rpc_error
from jobwire.v1 import admin_service_pb2_grpc as admin_grpc
from jobwire.v1 import job_service_pb2_grpc as jobs_grpc
from jobwire.v1 import schedule_service_pb2_grpc as schedules_grpc

Request = TypeVar("Request")
Response = TypeVar("Response")

NextCall: TypeAlias = tuple[Callable[..., Any], Any, float]
"""A method that streams, the request for it, and the longest that one stream may last, seconds."""

# A stream that went deaf without its connection breaking is left after so long; opening it
# again costs one read.
STREAM_LIMIT_S = 300.0


class AsyncCalls:
    """The channel and the stubs of a client.

    Args:
        options: Where the servers are.
        channel: An open channel to use in place of one of its own; it stays the caller's.
    """

    def __init__(self, options: ConnectionOptions, channel: grpc.aio.Channel | None) -> None:
        self._options = options
        self._opening = threading.Lock()
        self._given = channel is not None
        self._channel = channel
        self._metadata = tuple(options.metadata.items())
        if channel is not None:
            self._make_stubs(channel)

    def _make_stubs(self, channel: grpc.aio.Channel) -> None:
        self._jobs = jobs_grpc.JobServiceStub(channel)
        self._admin = admin_grpc.AdminServiceStub(channel)
        self._schedules = schedules_grpc.ScheduleServiceStub(channel)

    def open(self) -> None:
        """Opens the channel if it is not open; it connects with the first call."""
        with self._opening:
            if self._channel is None:
                self._channel = open_async_channel(self._options)
                self._make_stubs(self._channel)

    @property
    def jobs(self) -> jobs_grpc.JobServiceAsyncStub:
        """The producers' stub."""
        self.open()
        return self._jobs

    @property
    def admin(self) -> admin_grpc.AdminServiceAsyncStub:
        """The operators' stub."""
        self.open()
        return self._admin

    @property
    def schedules(self) -> schedules_grpc.ScheduleServiceAsyncStub:
        """The stub for recurring jobs."""
        self.open()
        return self._schedules

    async def close(self) -> None:
        """Closes the channel, unless it was given."""
        if self._channel is not None and not self._given:
            channel, self._channel = self._channel, None
            await channel.close()

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float,
    ) -> Response:
        """Calls, and calls again while that may help and the time lasts.

        Raises:
            CallError: The last refusal, or the first one that a repetition would not change.
        """
        deadline, backoff = Deadline(timeout_s), Backoff()
        while True:
            try:
                return await method(
                    request, timeout=deadline.remaining_s(), metadata=self._metadata
                )
            except grpc.RpcError as raised:
                error = from_rpc_error(raised)
            wait_s = backoff.next_s(error.retry_after_s)
            if not worth_retrying(error) or wait_s >= deadline.remaining_s():
                raise error
            await async_sleep(wait_s)

    async def stream(
        self,
        next_call: Callable[[], NextCall],
        *,
        deadline: Deadline,
        late: str,
        first_s: float,
        reconnect_s: float,
    ) -> AsyncGenerator[Any]:
        """Yields the answers of a stream, and of another one whenever it breaks or ends.

        It goes on until the caller leaves it.

        Args:
            next_call: Says what to call; asked anew for each stream.
            deadline: For the whole.
            late: What to say when that is over.
            first_s: How long to try until the first answer comes.
            reconnect_s: How long to go on trying later while no server answers.

        Raises:
            DeadlineExceeded: `deadline` is over.
            CallError: The server refused the call, or none answered in time.
        """
        backoff = Backoff()
        patience_s = first_s
        silence: Deadline | None = None
        while True:
            method, request, limit_s = next_call()
            limit_s = min(deadline.remaining_s(), limit_s)
            stream = method(
                request,
                timeout=None if math.isinf(limit_s) else limit_s,
                metadata=self._metadata,
            )
            try:
                async for answer in stream:
                    silence = None
                    patience_s = reconnect_s
                    backoff.reset()
                    yield answer
                wait_s = backoff.next_s()
            except grpc.RpcError as raised:
                error = from_rpc_error(raised)
                if deadline.expired():
                    raise DeadlineExceeded(late) from None
                silence = silence or Deadline(patience_s)
                wait_s = _wait_before_next_stream(error, silence, backoff)
            finally:
                stream.cancel()
            await async_sleep(min(wait_s, deadline.remaining_s()))


def _wait_before_next_stream(error: CallError, silence: Deadline, backoff: Backoff) -> float:
    wait_s = backoff.next_s(error.retry_after_s)
    # The end of STREAM_LIMIT_S is no failure: the watch goes on with another stream.
    worth_it = isinstance(error, DeadlineExceeded) or worth_retrying(error)
    if not worth_it or wait_s >= silence.remaining_s():
        raise error from None
    return wait_s

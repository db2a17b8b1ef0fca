"""The two ways to use a channel: a call that is repeated, a stream that reconnects."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeAlias, TypeVar, cast

import grpc

from jobwire._channels import AsyncChannels
from jobwire._connection import ConnectionOptions
from jobwire._producing import AsyncProducer
from jobwire._repeat import (
    Backoff,
    Deadline,
    async_sleep,
    is_from_broker,
    is_passing,
    worth_repeating,
)
from jobwire.errors import CallError, DeadlineExceeded
from jobwire.v1 import admin_service_pb2_grpc as admin_grpc
from jobwire.v1 import job_service_pb2_grpc as jobs_grpc
from jobwire.v1 import schedule_service_pb2_grpc as schedules_grpc
from jobwire.v1.job_pb2 import JOB_VIEW_BASIC
from jobwire.v1.job_service_pb2 import GetJobRequest

Request = TypeVar("Request")
Response = TypeVar("Response")

NextCall: TypeAlias = tuple[Callable[..., Any], Any, float]
"""A method that streams, the request for it, and the longest that one stream may last, seconds."""

# A stream may go silent although its connection does not break, so each is replaced after this
# long; opening another costs one read.
STREAM_LIMIT_S = 300.0
# How long one attempt may take where the call has no limit of its own.
LONE_ATTEMPT_S = 60.0
# How long a call may take that is to show whether servers answer where streams break.
EVIDENCE_S = 2.0


class AsyncCalls:
    """The channel and the stubs of a client.

    Args:
        options: Where the servers are.
        channel: An open channel to use in place of one of its own; it stays the caller's.
        timeout_s: How long a submission may take; None: no limit.
        reconnect_s: How long followers of jobs wait while no server answers; None: no limit.

    Attributes:
        producer: The producers' stream.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        channel: grpc.aio.Channel | None,
        timeout_s: float | None,
        reconnect_s: float | None,
    ) -> None:
        self._channels = AsyncChannels(options, channel)
        self._metadata = tuple(options.metadata.items())
        # To the stubs, the channels of all loops are one.
        stand_in = cast("grpc.aio.Channel", self._channels)
        self.jobs: jobs_grpc.JobServiceAsyncStub = jobs_grpc.JobServiceStub(stand_in)
        """The producers' stub."""
        self.admin: admin_grpc.AdminServiceAsyncStub = admin_grpc.AdminServiceStub(stand_in)
        """The operators' stub."""
        self.schedules: schedules_grpc.ScheduleServiceAsyncStub = (
            schedules_grpc.ScheduleServiceStub(stand_in)
        )
        """The stub for recurring jobs."""
        self.producer = AsyncProducer(
            options, channel, timeout_s, reconnect_s, self._answers_without_stream
        )

    async def close(self) -> None:
        """Close what was opened here; a channel that was given stays open."""
        await self.producer.close()
        await self._channels.close()

    async def _answers_without_stream(self, job_id: str) -> bool:
        """Tell whether a server answers a call."""
        request = GetJobRequest(job_id=job_id, view=JOB_VIEW_BASIC)
        try:
            await self.unary(self.jobs.GetJob, request, EVIDENCE_S)
        except CallError as error:
            return is_from_broker(error)
        return True

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None,
    ) -> Response:
        """Call, and repeat the call while that may help and there is time.

        Args:
            method: Of one of the stubs.
            request: For it.
            timeout_s: For all attempts together, in seconds; None: no limit.

        Raises:
            CallError: The last error, or the first one after which a repeat would not help.
        """
        deadline, backoff = Deadline(timeout_s), Backoff()
        # A call without a limit still needs one for each attempt, which may be lost silently.
        limit_s = LONE_ATTEMPT_S if timeout_s is None else math.inf
        told: CallError | None = None
        while True:
            closings = self._channels.closings
            try:
                await self._channels.ready()
                return await method(
                    request, timeout=deadline.for_call_s(limit_s), metadata=self._metadata
                )
            except BaseException as raised:
                error = self._channels.error_of(raised, closings)
                if error is None:
                    raise
            self._channels.suspect(error)
            if told is not None and timeout_s is not None and isinstance(error, DeadlineExceeded):
                # The last repeat ran out of time; the error before it says more.
                raise told from None
            told = error
            wait_s = backoff.next_s(error.retry_after_s)
            late = isinstance(error, DeadlineExceeded) and timeout_s is None
            if not (late or worth_repeating(error)) or wait_s >= deadline.remaining_s():
                raise error from None
            await async_sleep(wait_s)

    async def stream(
        self,
        next_call: Callable[[], NextCall],
        *,
        deadline: Deadline,
        late: str,
        first_s: float | None,
        reconnect_s: float | None,
    ) -> AsyncGenerator[Any]:
        """Yield the answers of a stream, opening another one whenever it breaks or ends.

        It continues until the caller leaves it.

        Args:
            next_call: Returns the call to make; called once for each stream.
            deadline: For all streams together.
            late: The error message once `deadline` is over.
            first_s: How long to try until the first answer comes, in seconds; None: forever.
            reconnect_s: How long to keep trying later while no server answers, in seconds; None:
                forever.

        Raises:
            DeadlineExceeded: `deadline` is over.
            CallError: The server refused the call, or none answered in time.
        """
        backoff = Backoff()
        patience_s = first_s
        silence: Deadline | None = None
        while True:
            closings = self._channels.closings
            stream: Any = None
            try:
                await self._channels.ready()
                method, request, limit_s = next_call()
                stream = method(
                    request, timeout=deadline.for_call_s(limit_s), metadata=self._metadata
                )
                async for answer in stream:
                    silence = None
                    patience_s = reconnect_s
                    backoff.reset()
                    yield answer
                wait_s = backoff.next_s()
            except BaseException as raised:
                error = self._channels.error_of(raised, closings)
                if error is None:
                    raise
                if deadline.expired():
                    raise DeadlineExceeded(late) from None
                self._channels.suspect(error)
                silence = silence or Deadline(patience_s)
                wait_s = _wait_before_next_stream(error, silence, backoff)
            finally:
                if stream is not None:
                    stream.cancel()
            await async_sleep(min(wait_s, deadline.remaining_s()))


def _wait_before_next_stream(error: CallError, silence: Deadline, backoff: Backoff) -> float:
    wait_s = backoff.next_s(error.retry_after_s)
    # The end of STREAM_LIMIT_S is not a failure: the watch continues with another stream.
    if not is_passing(error) or wait_s >= silence.remaining_s():
        raise error from None
    return wait_s

# Made from jobwire/_async by tools/unasync.py; edit that one.
"""One channel, and the two ways to use it: a call that retries, a watch that reconnects."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TypeVar

import grpc

from jobwire._connection import ConnectionOptions
from jobwire._retry import Backoff, Deadline, worth_retrying
from jobwire._timing import open_sync_channel, sync_sleep
from jobwire.errors import CallError, DeadlineExceeded, from_rpc_error
from jobwire.models import Job
from jobwire.v1 import admin_service_pb2_grpc as admin_grpc
from jobwire.v1 import job_service_pb2_grpc as jobs_grpc
from jobwire.v1.job_service_pb2 import WatchJobRequest

Request = TypeVar("Request")
Response = TypeVar("Response")

# A stream that went deaf without its connection breaking is left after so long; opening it
# again costs one read of the job.
STREAM_LIMIT_S = 300.0


class Calls:
    """The channel and the stubs of a client.

    Args:
        options: Where the servers are.
        channel: An open channel to use in place of one of its own; it stays the caller's.
    """

    def __init__(self, options: ConnectionOptions, channel: grpc.Channel | None) -> None:
        self._options = options
        self._opening = threading.Lock()
        self._given = channel is not None
        self._channel = channel
        self._metadata = tuple(options.metadata.items())
        if channel is not None:
            self._make_stubs(channel)

    def _make_stubs(self, channel: grpc.Channel) -> None:
        self._jobs = jobs_grpc.JobServiceStub(channel)
        self._admin = admin_grpc.AdminServiceStub(channel)

    def open(self) -> None:
        """Opens the channel if it is not open; it connects with the first call."""
        with self._opening:
            if self._channel is None:
                self._channel = open_sync_channel(self._options)
                self._make_stubs(self._channel)

    @property
    def jobs(self) -> jobs_grpc.JobServiceStub:
        """The producers' stub."""
        self.open()
        return self._jobs

    @property
    def admin(self) -> admin_grpc.AdminServiceStub:
        """The operators' stub."""
        self.open()
        return self._admin

    def close(self) -> None:
        """Closes the channel, unless it was given."""
        if self._channel is not None and not self._given:
            channel, self._channel = self._channel, None
            channel.close()

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
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
                return method(request, timeout=deadline.remaining_s(), metadata=self._metadata)
            except grpc.RpcError as raised:
                error = from_rpc_error(raised)
            wait_s = backoff.next_s(error.retry_after_s)
            if not worth_retrying(error) or wait_s >= deadline.remaining_s():
                raise error
            sync_sleep(wait_s)

    def watch(
        self, request: WatchJobRequest, timeout_s: float | None, reconnect_s: float
    ) -> Iterator[Job]:
        """Yields the job now and after each change until it ends, across reconnects.

        Args:
            request: Names the job.
            timeout_s: For the whole watch; None: as long as it takes.
            reconnect_s: How long to go on trying while no server answers.

        Raises:
            DeadlineExceeded: `timeout_s` is over.
            CallError: The server refused the watch, or none answered for `reconnect_s`.
        """
        deadline, backoff = Deadline(timeout_s), Backoff()
        silence: Deadline | None = None
        seen = -1
        while True:
            stream = self.jobs.WatchJob(
                request,
                timeout=min(deadline.remaining_s(), STREAM_LIMIT_S),
                metadata=self._metadata,
            )
            wait_s = 0.0
            try:
                for response in stream:
                    silence = None
                    backoff.reset()
                    if response.WhichOneof("event") != "job":
                        continue
                    job = Job.from_proto(response.job)
                    # After a reconnect the first answer may be a state that was seen before.
                    if job.revision > seen:
                        seen = job.revision
                        yield job
                    if job.state.is_terminal:
                        return
                wait_s = backoff.next_s()
            except grpc.RpcError as raised:
                error = from_rpc_error(raised)
                if deadline.expired():
                    raise DeadlineExceeded(
                        f"job {request.job_id} did not end within {timeout_s:g} s"
                    ) from None
                silence = silence or Deadline(reconnect_s)
                wait_s = _wait_before_watching_again(error, silence, backoff)
            finally:
                stream.cancel()
            sync_sleep(min(wait_s, deadline.remaining_s()))


def _wait_before_watching_again(error: CallError, silence: Deadline, backoff: Backoff) -> float:
    wait_s = backoff.next_s(error.retry_after_s)
    # The end of STREAM_LIMIT_S is no failure: the watch goes on with another stream.
    worth_it = isinstance(error, DeadlineExceeded) or worth_retrying(error)
    if not worth_it or wait_s >= silence.remaining_s():
        raise error from None
    return wait_s

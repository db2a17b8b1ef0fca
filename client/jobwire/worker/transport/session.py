"""One stream: a reader, a writer, and a timer that notices silence."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
from grpc import aio

from jobwire.errors import CallError, Unavailable, from_rpc_error
from jobwire.v1.worker_service_pb2 import Attach, Drain, WorkRequest, WorkResponse
from jobwire.worker.cancelling import this_task_is_cancelled
from jobwire.worker.transport.base import Host
from jobwire.worker.transport.outbox import Outbox

# After this many of the server's heartbeat intervals without a word the stream is declared dead,
# while there is time to attach elsewhere.
SILENT_INTERVALS = 2
DEFAULT_INTERVAL_S = 5.0
# How long jobs may wait for their acknowledgement to be written before they start.
LONGEST_ACK_S = 1.0
# A check that comes this late means that this loop stood still, not that the server was silent.
LATE_S = 0.5


class Session:
    """An attached stream; made by `attach`.

    Attributes:
        attached: The server's answer.
        heard_at: When something last came, by the loop's clock.
        drain: Set by the server's wish that the stream be left.
    """

    def __init__(
        self, call: Any, channel: aio.Channel, own_channel: bool, first: WorkResponse
    ) -> None:
        self.attached = first.attached
        # It may bring more than the answer.
        self._first: WorkResponse | None = first
        self.drain: asyncio.Future[Drain] = asyncio.get_running_loop().create_future()
        interval = self.attached.heartbeat_interval.ToTimedelta().total_seconds()
        self._interval_s = interval or DEFAULT_INTERVAL_S
        own = self.attached.worker_heartbeat_interval.ToTimedelta().total_seconds()
        self._beat_s = own or self._interval_s
        self._call = call
        self._channel = channel
        self._own_channel = own_channel
        self._loop = asyncio.get_running_loop()
        self._began_at = self.heard_at = self._said_at = self._loop.time()
        self._beats: asyncio.TimerHandle | None = None
        self._dead = ""
        self._look_at = 0.0
        self._takes_jobs = True
        self._hushed = False
        self._frames_with_jobs = 0
        self._counts_frames = "received" in self.attached.features

    @classmethod
    async def attach(
        cls,
        stub: Any,
        attach: Attach,
        metadata: tuple[tuple[str, str], ...],
        timeout_s: float,
        channel: aio.Channel,
        own_channel: bool,
    ) -> Session:
        """Open a stream and wait for the server's answer.

        Raises:
            CallError: There was none in time, or it was a refusal.
        """
        call = stub.Work(metadata=metadata)
        try:
            async with asyncio.timeout(timeout_s):
                first = await _first_answer(call, WorkRequest(attach=attach))
        except BaseException as error:
            call.cancel()
            if isinstance(error, TimeoutError):
                raise Unavailable(f"no answer within {timeout_s:g} s") from None
            raise
        return cls(call, channel, own_channel, first)

    @property
    def lease_s(self) -> float:
        """The lease of each job, seconds."""
        return self.attached.lease_duration.ToTimedelta().total_seconds()

    @property
    def interval_s(self) -> float:
        """The server says something at least this often, seconds."""
        return self._interval_s

    @property
    def contact_s(self) -> float:
        """How long after the last word of any server the leases are this worker's, seconds."""
        attached = self.attached
        for told in ("contact_timeout", "reconnect_window"):
            if attached.HasField(told):
                return float(getattr(attached, told).ToTimedelta().total_seconds())
        return self.lease_s

    @property
    def lasted_s(self) -> float:
        """How long ago it was attached, seconds."""
        return self._loop.time() - self._began_at

    @property
    def was_silent(self) -> bool:
        """It was left because the server said nothing."""
        return bool(self._dead)

    def refuse_jobs(self) -> None:
        """Ignore what is assigned from now on: another stream has named the leases."""
        self._takes_jobs = False

    def hush(self) -> None:
        """Say nothing more: another stream speaks for the worker now."""
        self._hushed = True

    async def run(self, host: Host, outbox: Outbox) -> None:
        """Read and write until the stream ends; return if the server ended it normally.

        Raises:
            CallError: Anything else.
        """
        writer = asyncio.create_task(self._write(outbox), name="work-writer")
        self._look_later(outbox)
        try:
            await self._read(host, outbox)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            if this_task_is_cancelled():
                raise
            raise Unavailable(self._dead or "the stream was broken off") from None
        finally:
            if self._beats is not None:
                self._beats.cancel()
            writer.cancel()
            await asyncio.wait({writer})
            await self.close()

    async def close(self) -> None:
        """Let go of the stream and its connection."""
        self._call.cancel()
        if self._own_channel:
            await self._channel.close()

    async def _read(self, host: Host, outbox: Outbox) -> None:
        if self._first is not None:
            host.lose(self.attached.lost_leases)
            await self._receive(self._first, host, outbox)
            self._first = None
        while True:
            frame = await self._call.read()
            if frame is aio.EOF:
                return
            self.heard_at = self._loop.time()
            await self._receive(frame, host, outbox)

    async def _receive(self, frame: WorkResponse, host: Host, outbox: Outbox) -> None:
        for receipt in frame.receipts:
            outbox.receive(receipt)
        if frame.lost_leases:
            host.lose(frame.lost_leases)
        if self._takes_jobs and frame.assignments:
            self._frames_with_jobs += 1
            if self._counts_frames:
                outbox.acknowledge_frames(self._frames_with_jobs)
            else:
                outbox.acknowledge(frame.assignments)
            # Before they start: a handler may keep the loop, or all of Python, to itself.
            await self._have_said(outbox)
            # Unless another stream has named the leases meanwhile, without these.
            if self._takes_jobs:
                host.assign(frame.assignments)
        for notice in frame.cancellations:
            host.cancel(notice)
        if frame.HasField("drain") and not self.drain.done():
            self.drain.set_result(frame.drain)

    async def _have_said(self, outbox: Outbox) -> None:
        """Wait until gRPC has the acknowledgements and can send them without Python."""
        # The writer comes first where it only waits for something to say.
        await asyncio.sleep(0)
        if outbox.owes_acks:
            # It is in the middle of a frame that the server does not take. Not for ever: the server
            # may wait for this side to read.
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_ACK_S):
                    await outbox.acks_taken()
                    # The frame is taken; with its next step the writer gives it away.
                    await asyncio.sleep(0)

    async def _write(self, outbox: Outbox) -> None:
        try:
            while not self._hushed:
                frame = outbox.next_frame()
                if frame is None:
                    outbox.ready.clear()
                    await outbox.ready.wait()
                    continue
                self._said_at = self._loop.time()
                await self._call.write(frame)
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the stream has ended, and the reader learns how

    def _look(self, outbox: Outbox) -> None:
        """Send a heartbeat if one is due, and check when the server was last heard."""
        now = self._loop.time()
        if self._said_at + self._beat_s <= now:
            self._said_at = now
            outbox.beat()
        # The same sum as the moment of the look: a difference may round to just below the span.
        if now >= self._silent_at():
            if now - self._look_at <= LATE_S:
                self._dead = f"nothing was heard for {now - self.heard_at:.1f} s"
                self._call.cancel()
                return
            # What came while this loop stood still is read first.
            self._look_at = now + self._interval_s
            self._beats = self._loop.call_at(self._look_at, self._look, outbox)
            return
        self._look_later(outbox)

    def _look_later(self, outbox: Outbox) -> None:
        self._look_at = min(self._said_at + self._beat_s, self._silent_at())
        self._beats = self._loop.call_at(self._look_at, self._look, outbox)

    def _silent_at(self) -> float:
        return self.heard_at + SILENT_INTERVALS * self._interval_s


async def _first_answer(call: Any, request: WorkRequest) -> WorkResponse:
    try:
        await call.write(request)
    except (grpc.RpcError, asyncio.InvalidStateError):
        pass  # the reading tells why
    except asyncio.CancelledError:
        if this_task_is_cancelled():
            raise
    try:
        first = await call.read()
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    except asyncio.CancelledError:
        if this_task_is_cancelled():
            raise
        raise Unavailable("the stream was broken off") from None
    if first is aio.EOF or not first.HasField("attached"):
        raise CallError("the server did not answer the attachment", code=grpc.StatusCode.INTERNAL)
    answer: WorkResponse = first
    return answer

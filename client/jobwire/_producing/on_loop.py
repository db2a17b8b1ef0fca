"""Keeps a producer's stream on an event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from grpc import aio

from jobwire._channels import open_async_channel
from jobwire._connection import ConnectionOptions
from jobwire._producing.keeper import Keeper
from jobwire._producing.line import Health, Line
from jobwire._producing.loop_stream import LoopParcel, LoopStream
from jobwire._producing.parcels import IDLE_S, TICK_S, Follower, HandedBack
from jobwire.errors import CallError
from jobwire.v1.job_service_pb2 import ProduceResponse

log = logging.getLogger("jobwire.client")


class LoopProducer(Keeper):
    """Keeps a stream on one event loop while there is use for one.

    Args:
        options: Where the servers are.
        channel: An open channel to use in place of others; it stays the caller's.
        timeout_s: How long a submission may take; None: no limit.
        reconnect_s: How long followers wait while no server answers; None: no limit.
        evidence: Asks for a job without a stream; returns True if a server answered.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        channel: aio.Channel | None,
        timeout_s: float | None,
        reconnect_s: float | None,
        evidence: Callable[[str], Awaitable[bool]],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        super().__init__(self.loop.time, options.address, timeout_s, reconnect_s)
        self._options = options
        self._channel = channel
        self._metadata = tuple(options.metadata.items())
        self._evidence = evidence
        self._stream: LoopStream | None = None
        self._leaving: set[LoopStream] = set()
        self._opening: asyncio.TimerHandle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._waking: asyncio.TimerHandle | None = None
        self._gathering: asyncio.Task[None] | None = None

    # From callers.

    def submit(self, parcel: LoopParcel) -> None:
        """Send submissions, or keep them until they can be sent."""
        self.talk.submit(parcel)
        self.pump()

    def follow(self, job_id: str, follower: Follower) -> None:
        """Follow a job."""
        self.talk.follow(job_id, follower)
        self.pump()

    def unfollow(self, job_id: str, follower: Follower) -> None:
        """Follow a job no longer."""
        self.talk.unfollow(job_id, follower)
        if self._stream is not None:
            self.pump()

    def without(self) -> HandedBack:
        """Say that submissions go without a stream; try one beside them, if it is time."""
        if not self.reach.is_resting and self.reach.next_s == 0 and self._stream is None:
            self._open()
        return HandedBack()

    def pump(self) -> None:
        """Write what there is to write, if that can be done now."""
        stream = self._stream
        if stream is None:
            self._open_soon()
            return
        if stream.is_writing:
            return
        frame = self.talk.next_frame(stream.line)
        if frame is not None:
            stream.write(frame)
        elif self._waking is None and (wait_s := self.talk.waits_s) is not None:
            self._waking = self.loop.call_later(wait_s, self._wake)

    def _written(self) -> None:
        if self.talk.has_news:
            self.pump()

    def _wake(self) -> None:
        self._waking = None
        self.pump()

    # Streams.

    def _open_soon(self) -> None:
        if self._opening is not None or self.is_over or self._stream is not None:
            return
        wait_s = self.reach.next_s
        if wait_s > 0:
            self._opening = self.loop.call_later(wait_s, self._open_now)
        else:
            self._open()

    def _open_now(self) -> None:
        self._opening = None
        if self._stream is None and not self.talk.is_idle:
            self._open()

    def _open(self) -> None:
        try:
            self._open_one()
        except Exception as error:
            log.debug("no stream can be opened: %s", error)
            self._note_defect()

    def _open_one(self) -> None:
        channel = self._channel
        if channel is None:
            channel = open_async_channel(replace(self._options, target=self.address))
        self._used_at = self.loop.time()
        if self._ticking is None:
            self._ticking = self.loop.call_later(TICK_S, self._tick)
        self._stream = LoopStream(
            self.talk.begin(),
            channel,
            self._channel is None,
            self._metadata,
            self._hear,
            self._written,
            self._end,
        )
        self.pump()

    def _hear(self, stream: LoopStream, response: ProduceResponse) -> None:
        line = stream.line
        opens = not line.is_open
        self.talk.feed(line, response)
        if opens and line.is_open:
            self.reach.opened()
        if stream is self._stream:
            if line.is_draining:
                self._move(stream)
            elif self.talk.has_news:
                self.pump()
        elif not line.sent:
            stream.leave()

    def _move(self, stream: LoopStream) -> None:
        """Go on with another stream, while this one brings what it owes."""
        self._leaving.add(stream)
        self._stream = None
        self._note_move(stream.line)
        if not stream.line.sent:
            stream.leave()
        if not self.talk.is_idle:
            self._open_soon()

    def _end(self, stream: LoopStream, error: CallError | None, shut: bool) -> None:
        """Go on after the end of a stream."""
        self._leaving.discard(stream)
        line = stream.line
        if self.is_over:
            return
        if shut:
            # Its task was cancelled, most likely with all others at the end of the loop.
            self.close(None)
            return
        if error is not None:
            log.debug("a producer's stream ended: %s", error)
        was_current = stream is self._stream
        if was_current:
            self._stream = None
        self.talk.broken(line, error)
        if was_current:
            self._fail(line, error)
        if not self.talk.is_idle:
            self._open_soon()

    def _fail(self, line: Line, error: CallError | None, *, silent: bool = False) -> None:
        if self._note_failure(line, error, silent=silent) and self._gathering is None:
            self._gathering = self.loop.create_task(self._gather())

    async def _gather(self) -> None:
        """Find out whether calls work where streams don't."""
        try:
            for job_id in [*self.talk.follows.jobs()][:1]:
                if await self._evidence(job_id):
                    self.reach.answered()
        finally:
            self._gathering = None

    def _give_up(self, stream: LoopStream, *, silent: bool) -> None:
        """Go on without a stream that says nothing."""
        line = stream.line
        self._stream = None
        self.talk.broken(line, None)
        # What it might still bring counts no more.
        self._leaving.add(stream)
        stream.cancel()
        self._fail(line, None, silent=silent)
        if not self.talk.is_idle:
            self._open_soon()

    def _tick(self) -> None:
        self._ticking = None
        if self.is_over:
            return
        talk, now = self.talk, self.loop.time()
        talk.tick()
        for leaving in [*self._leaving]:
            talk.expire(leaving.line)
            if not leaving.line.sent or leaving.line.health(now) is Health.SILENT:
                leaving.leave()
            elif not leaving.is_writing and (frame := talk.next_frame(leaving.line)) is not None:
                leaving.write(frame)
        stream = self._stream
        is_idle = self._is_idle_for(IDLE_S)
        if stream is not None:
            health = stream.line.health(now)
            if health is not Health.WELL:
                log.debug("a producer's stream is given up: %s", health.value)
                self._give_up(stream, silent=health is Health.UNOPENED)
            elif is_idle:
                self._stream = talk.line = None
                self._leaving.add(stream)
                stream.leave()
            else:
                self.pump()
        if self._stream is not None or self._leaving or not talk.is_idle:
            self._ticking = self.loop.call_later(TICK_S, self._tick)

    def close(self, error: CallError | None) -> list[asyncio.Task[None]]:
        """End it for good, and return what ends with it.

        Args:
            error: What those who wait are told; None: to go on without a stream.
        """
        self.is_over = True
        for timer in (self._opening, self._ticking, self._waking):
            if timer is not None:
                timer.cancel()
        streams = [*self._leaving, *([self._stream] if self._stream else [])]
        self._stream = None
        self.talk.fail(error or HandedBack(), [stream.line for stream in streams])
        for stream in streams:
            if error is None:
                stream.cancel()
            else:
                stream.leave()
        if self._gathering is not None:
            self._gathering.cancel()
        return [stream.reading for stream in streams]

"""Keeps a producer's stream for the threads of a process."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import grpc

from jobwire._channels import open_sync_channel
from jobwire._connection import ConnectionOptions
from jobwire._producing.keeper import Keeper
from jobwire._producing.line import Health, Line
from jobwire._producing.parcels import (
    IDLE_S,
    TICK_S,
    Follower,
    HandedBack,
    News,
)
from jobwire._producing.thread_stream import Box, ThreadParcel, ThreadStream
from jobwire.errors import CallError, from_rpc_error
from jobwire.v1.job_service_pb2 import ProduceResponse

log = logging.getLogger("jobwire.client")

LEAVING_S = 1.0
"""How long to wait for the threads of streams that were ended here."""


class ThreadProducer(Keeper):
    """Keeps a stream in this process while there is use for one.

    Its lock guards the conversation. Whoever waits for something looks now and then for what is
    due, and so does the thread that writes.

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
        channel: grpc.Channel | None,
        timeout_s: float | None,
        reconnect_s: float | None,
        evidence: Callable[[str], bool],
    ) -> None:
        super().__init__(time.monotonic, options.address, timeout_s, reconnect_s)
        self._options = options
        self._channel = channel
        self._metadata = tuple(options.metadata.items())
        self._evidence = evidence
        self._lock = threading.RLock()
        self._stream: ThreadStream | None = None
        self._streams: set[ThreadStream] = set()
        """All that have not ended."""
        self._rests = False
        """True while the next stream is to be opened by whoever sleeps until then."""
        self._held = threading.Event()
        self._held.set()
        """Not set while no stream may be opened, because the process forks."""
        self._ticked_at = time.monotonic()
        self._is_asking = False

    # From callers.

    def submit(self, parcel: ThreadParcel) -> None:
        """Send submissions, keep them until they can be sent, or hand them back."""
        with self._lock:
            if self.is_over or (not self.reach.is_fine and self.reach.is_doubtful):
                parcel.settle(self._without())
                return
            self.talk.submit(parcel)
            self._pump()

    def follow(self, job_id: str, follower: Follower) -> None:
        """Follow a job, or hand it back."""
        with self._lock:
            if self.reach.is_resting or self.is_over:
                follower.hear(HandedBack())
                return
            self.talk.follow(job_id, follower)
            self._pump()

    def unfollow(self, job_id: str, follower: Follower) -> None:
        """Follow a job no longer."""
        with self._lock:
            self.talk.unfollow(job_id, follower)
            if self._stream is not None:
                self._stream.wake()

    def wait(self, box: Box, timeout_s: float | None) -> bool:
        """Wait until a box is filled; return False if `timeout_s` passes first."""
        if timeout_s is None:
            while not box.wait(TICK_S):
                self.tick()
            return True
        ends_at = time.monotonic() + timeout_s
        while not box.wait(min(TICK_S, timeout_s)):
            timeout_s = ends_at - time.monotonic()
            if timeout_s <= 0:
                return False
            self.tick()
        return True

    def give_up(self, parcel: ThreadParcel) -> None:
        """Note that the time of a parcel is over."""
        with self._lock:
            self.talk.give_up(parcel)

    def say(self, follower: Follower, news: News) -> None:
        """Tell somebody who waits that there is nothing to wait for."""
        with self._lock:
            follower.hear(news)

    def answered(self) -> None:
        """Note that a call was answered."""
        self.reach.answered()

    # Streams; with the lock.

    def _without(self) -> HandedBack:
        """Say that submissions go without a stream; try one beside them, if it is time."""
        if not self.reach.is_resting and self.reach.next_s == 0:
            self._open_soon()
        return HandedBack()

    def _pump(self) -> None:
        if self._stream is None:
            self._open_soon()
        elif self._stream.sleeps:
            # Taken here, it needs not be waited for by the thread that writes it.
            frame = self.talk.next_frame(self._stream.line)
            if frame is not None:
                self._stream.wake(frame)

    def _open_soon(self) -> None:
        if self._rests or self.is_over or self._stream is not None:
            return
        wait_s = self.reach.next_s
        if wait_s <= 0 and self._held.is_set():
            self._open()
            return
        self._rests = True
        threading.Thread(
            target=self._open_later, args=(wait_s,), name="jobwire-produce", daemon=True
        ).start()

    def _open_later(self, wait_s: float) -> None:
        time.sleep(wait_s)
        self._held.wait()
        with self._lock:
            self._rests = False
            if not self.talk.is_idle or self.reach.is_doubtful:
                self._open_soon()

    def _open(self) -> None:
        try:
            self._open_one()
        except Exception as error:
            log.debug("no stream can be opened: %s", error)
            self._note_defect()

    def _open_one(self) -> None:
        channel = self._channel
        if channel is None:
            channel = open_sync_channel(replace(self._options, target=self.address))
        self._used_at = time.monotonic()
        stream = self._stream = ThreadStream(
            self.talk.begin(), channel, self._channel is None, self._metadata, self._frames
        )
        self._streams.add(stream)
        stream.reader = threading.Thread(
            target=self._read, args=(stream,), name="jobwire-produce", daemon=True
        )
        stream.reader.start()

    def _frames(self, stream: ThreadStream) -> Iterator[bytes]:
        """Yield what to write, in the thread that writes it."""
        stream.writer = threading.current_thread()
        lock, talk, line = self._lock, self.talk, stream.line
        while not stream.is_leaving:
            with lock:
                frame = talk.next_frame(line)
                stream.sleeps = frame is None
                wait_s = talk.waits_s or TICK_S if frame is None else 0.0
            if frame is None:
                try:
                    frame = stream.wakes.get(timeout=min(wait_s, TICK_S))
                except queue.Empty:
                    with lock:
                        # Somebody may put a frame there at this moment.
                        stream.sleeps = False
                        frame = None if stream.wakes.empty() else stream.wakes.get()
                    self.tick()
            if frame is not None:
                yield frame

    def _read(self, stream: ThreadStream) -> None:
        error: CallError | None = None
        try:
            for response in stream.call:
                self._hear(stream, response)
        except grpc.RpcError as raised:
            error = from_rpc_error(raised)
        except Exception as raised:
            log.exception("a producer's stream can't be read")
            error = CallError(f"the stream can't be read: {raised}", code=grpc.StatusCode.INTERNAL)
            stream.call.cancel()
        stream.is_leaving = True
        stream.wakes.put(None)
        self._end(stream, error)
        stream.was_read.set()
        # To close a connection keeps gRPC busy, and a fork at that moment breaks it in the child.
        self._held.wait(LEAVING_S)
        stream.close()
        with self._lock:
            self._streams.discard(stream)

    def _hear(self, stream: ThreadStream, response: ProduceResponse) -> None:
        line = stream.line
        with self._lock:
            opens = not line.is_open
            self.talk.feed(line, response)
            if opens and line.is_open:
                self.reach.opened()
            if stream is not self._stream:
                if not line.sent:
                    stream.leave()
            elif line.is_draining:
                self._move(stream)
            elif self.talk.has_news:
                stream.wake()

    def _move(self, stream: ThreadStream) -> None:
        """Go on with another stream, while this one brings what it owes."""
        self._stream = None
        self._note_move(stream.line)
        if not stream.line.sent:
            stream.leave()
        if not self.talk.is_idle:
            self._open_soon()

    def _end(self, stream: ThreadStream, error: CallError | None) -> None:
        """Go on after the end of a stream."""
        with self._lock:
            line = stream.line
            if self.is_over:
                return
            if error is not None:
                log.debug("a producer's stream ended: %s", error)
            was_current = stream is self._stream
            if was_current:
                self._stream = None
            self.talk.broken(line, error)
            if was_current and self._held.is_set():
                self._fail(line, error)
            if not self.talk.is_idle:
                self._open_soon()

    def _fail(self, line: Line, error: CallError | None, *, silent: bool = False) -> None:
        if self._note_failure(line, error, silent=silent) and not self._is_asking:
            self._is_asking = True
            threading.Thread(target=self._gather, name="jobwire-produce", daemon=True).start()

    def _gather(self) -> None:
        """Find out whether calls work where streams don't."""
        try:
            with self._lock:
                jobs = [*self.talk.follows.jobs()][:1]
            for job_id in jobs:
                if self._evidence(job_id):
                    self.reach.answered()
        finally:
            self._is_asking = False

    def _give_up(self, stream: ThreadStream, *, silent: bool) -> None:
        """Go on without a stream that says nothing."""
        line = stream.line
        self._stream = None
        self.talk.broken(line, None)
        stream.cancel()
        self._fail(line, None, silent=silent)
        if not self.talk.is_idle:
            self._open_soon()

    # Time.

    def tick(self) -> None:
        """Do what is due, if it was not looked for just now."""
        now = time.monotonic()
        if now - self._ticked_at < TICK_S / 2:
            return
        with self._lock:
            if now - self._ticked_at < TICK_S / 2 or self.is_over:
                return
            self._ticked_at = now
            self._look(now)

    def _look(self, now: float) -> None:
        talk = self.talk
        talk.tick()
        for leaving in self._streams - {self._stream}:
            talk.expire(leaving.line)
            if not leaving.line.sent or leaving.line.health(now) is Health.SILENT:
                leaving.leave()
            else:
                leaving.wake()
        is_idle = self._is_idle_for(IDLE_S)
        stream = self._stream
        if stream is None:
            if not talk.is_idle:
                self._open_soon()
            return
        health = stream.line.health(now)
        if health is not Health.WELL:
            log.debug("a producer's stream is given up: %s", health.value)
            self._give_up(stream, silent=health is Health.UNOPENED)
        elif is_idle:
            self._stream = talk.line = None
            stream.leave()
        else:
            stream.wake()

    # Ends.

    def close(self, error: CallError | HandedBack) -> None:
        """End it for good.

        Args:
            error: What those who wait are told.
        """
        with self._lock:
            self.is_over = True
            streams = [*self._streams]
            self._stream = None
            waited = any(stream.line.sent for stream in streams)
            self.talk.fail(error, [stream.line for stream in streams])
        for stream in streams:
            stream.cancel() if waited else stream.leave()
        self._join(streams)

    def before_fork(self) -> None:
        """End all streams, so that no thread is inside gRPC; what they carried is sent again."""
        self._held.clear()
        with self._lock:
            streams = [*self._streams]
        ends_at = time.monotonic() + LEAVING_S
        for stream in streams:
            stream.cancel()
        for stream in streams:
            stream.rest(ends_at)

    def after_fork(self) -> None:
        """Go on, in the parent."""
        self._held.set()

    def _join(self, streams: list[ThreadStream]) -> None:
        ends_at = time.monotonic() + LEAVING_S
        for stream in streams:
            stream.join(ends_at)
            stream.call.cancel()

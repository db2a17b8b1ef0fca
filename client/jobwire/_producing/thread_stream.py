"""A producer's stream for threads, and those who wait for it."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from jobwire._producing.line import Line
from jobwire._producing.parcels import (
    MAX_KEPT,
    METHOD,
    TICK_S,
    Follower,
    News,
    Outcome,
    Parcel,
)
from jobwire._surroundings import note_end
from jobwire.v1.job_service_pb2 import ProduceResponse


class Box:
    """Holds one thing that a thread waits for."""

    __slots__ = ("_empty", "content")

    def __init__(self) -> None:
        self.content: Any = None
        self._empty = threading.Lock()
        self._empty.acquire()

    def put(self, content: Any) -> None:
        """Fill it; only the first counts."""
        if self.content is None:
            self.content = content
            self._empty.release()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is filled; return False if `timeout_s` passes first."""
        return self.content is not None or self._empty.acquire(timeout=timeout_s)


class ThreadParcel(Parcel):
    """A parcel that a thread waits for.

    Attributes:
        box: Its outcome.
    """

    __slots__ = ("box", "is_left")

    def __init__(self, data: bytes, queue: str, **more: Any) -> None:
        super().__init__(data, queue, **more)
        self.box = Box()
        self.is_left = False

    @property
    def left(self) -> bool:
        return self.is_left or self.box.content is not None

    def settle(self, outcome: Outcome) -> None:
        self.box.put(outcome)


class ThreadFollower(Follower):
    """Waits for the end of a job.

    Attributes:
        box: It.
    """

    __slots__ = ("box",)

    def __init__(self) -> None:
        self.box = Box()

    def hear(self, news: News) -> None:
        self.box.put(news)


class ThreadChanges(Follower):
    """Waits for changes of a job.

    Args:
        full: True: in the FULL view.
        tick: Called now and then while it waits.
    """

    changes = True

    def __init__(self, full: bool, tick: Callable[[], None]) -> None:
        self.full = full
        self._tick = tick
        # Whoever takes them more slowly than they come misses some, and never the last.
        self._news: deque[News] = deque(maxlen=MAX_KEPT)
        self._came = threading.Semaphore(0)

    def hear(self, news: News) -> None:
        self._news.append(news)
        self._came.release()

    def next(self, timeout_s: float | None) -> News | None:
        """Wait for the next one; return None if `timeout_s` passes first."""
        ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._news:
            wait_s = TICK_S if ends_at is None else min(TICK_S, ends_at - time.monotonic())
            if wait_s <= 0:
                return None
            if not self._came.acquire(timeout=wait_s):
                self._tick()
        return self._news.popleft()


class ThreadStream:
    """One stream: gRPC's thread takes its frames, and one of ours reads.

    Args:
        line: What is known of it.
        channel: Of its own, or the caller's.
        is_own: True: the channel ends with it.
        metadata: Sent with the call.
        frames: Yields what to write.
    """

    def __init__(
        self,
        line: Line,
        channel: grpc.Channel,
        is_own: bool,
        metadata: tuple[tuple[str, str], ...],
        frames: Callable[[ThreadStream], Iterator[bytes]],
    ) -> None:
        self.line = line
        self.is_leaving = self.sleeps = False
        self.wakes: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.writer: threading.Thread | None = None
        self.reader: threading.Thread | None = None
        self.was_read = threading.Event()
        """Set once the reader has nothing more to do with gRPC but to close the channel."""
        self._fetcher: threading.Thread | None = None
        """gRPC's own, which hands answers to the reader."""
        self._channel = channel
        self._is_own = is_own
        # Frames are bytes already.
        method: Any = channel.stream_stream(
            METHOD, request_serializer=None, response_deserializer=self._parse
        )
        self.call: Any = method(frames(self), metadata=metadata)

    def _parse(self, data: bytes) -> ProduceResponse:
        if self._fetcher is None:
            self._fetcher = threading.current_thread()
        return ProduceResponse.FromString(data)

    def rest(self, ends_at: float) -> None:
        """Wait until none of its threads is inside gRPC.

        Args:
            ends_at: When to wait no longer, by `time.monotonic`.
        """
        self.was_read.wait(max(0.0, ends_at - time.monotonic()))
        self._join(ends_at, self.writer, self._fetcher)

    def join(self, ends_at: float) -> None:
        """Wait for the end of its threads."""
        self._join(ends_at, self.writer, self._fetcher, self.reader)

    @staticmethod
    def _join(ends_at: float, *threads: threading.Thread | None) -> None:
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, ends_at - time.monotonic()))

    def wake(self, frame: bytes | None = None) -> None:
        """Let the thread that writes look for another frame, or take this one."""
        if self.sleeps:
            self.sleeps = False
            self.wakes.put(frame)

    def leave(self) -> None:
        """Say that nothing more will come, and let the server end the stream."""
        self.is_leaving = True
        self.wakes.put(None)

    def cancel(self) -> None:
        """End it at once."""
        self.leave()
        self.call.cancel()
        note_end()

    def close(self) -> None:
        """Let its channel go."""
        if self._is_own:
            self._channel.close()
            note_end()

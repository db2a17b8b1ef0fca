"""One watched job: its newest state and the newest of its output, for all its watchers here."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.domain.model import Job, JobState, OutputPosition, Written
from jobwire_server.store.reads import Followed

TAIL_BYTES = 256 << 10
TAIL_EVENTS = 256
"""How much of the newest output is kept for watchers that keep up; slower ones read from the store.
"""


@dataclass(slots=True, eq=False)
class JobEvent:
    """The job as it stands. One object for all watchers, so that it is put into bytes once."""

    job: Job
    encoded: dict[bool, bytes] = field(default_factory=dict)
    """Full view or not -> the answer's bytes, kept by whoever made them."""


@dataclass(slots=True, eq=False)
class OutputEvent:
    """A run of output of one attempt."""

    written: tuple[Written, ...]
    start: OutputPosition
    end: OutputPosition
    encoded: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of content."""
        return sum(len(piece.content) for one in self.written for piece in one.pieces)

    def behind(self, position: OutputPosition) -> OutputEvent | None:
        """Return what of it lies behind a position, None if nothing does."""
        if position <= self.start:
            return self
        left = []
        for one in self.written:
            rest = cut(one, position)
            if rest is not None:
                left.append(rest)
        return _event(left) if left else None


def end_of(one: Written) -> OutputPosition:
    """Return the position behind a run of output."""
    return OutputPosition(one.attempt, one.offset + sum(len(p.content) for p in one.pieces))


def cut(one: Written, position: OutputPosition) -> Written | None:
    """Return what of a run lies behind a position."""
    if end_of(one) <= position:
        return None
    if OutputPosition(one.attempt, one.offset) >= position:
        return one
    skip = position.offset - one.offset
    pieces = []
    for piece in one.pieces:
        if skip < len(piece.content):
            pieces.append(piece._replace(content=piece.content[skip:]))
        skip = max(0, skip - len(piece.content))
    return Written(one.attempt, position.offset, tuple(pieces))


def _event(written: list[Written]) -> OutputEvent:
    first = written[0]
    start = OutputPosition(first.attempt, first.offset)
    return OutputEvent(tuple(written), start, end_of(written[-1]))


def events_of(written: list[Written]) -> list[OutputEvent]:
    """Put runs of output together by attempt."""
    events: list[OutputEvent] = []
    group: list[Written] = []
    for one in written:
        if group and group[-1].attempt != one.attempt:
            events.append(_event(group))
            group = []
        group.append(one)
    if group:
        events.append(_event(group))
    return events


class Tail:
    """The newest output of a job, bounded."""

    __slots__ = ("_bytes", "end", "events", "floor")

    def __init__(self, end: OutputPosition) -> None:
        self.events: deque[OutputEvent] = deque()
        self.floor = end
        """Everything that was written behind this position and before `end` is here."""
        self.end = end
        self._bytes = 0

    def add(self, event: OutputEvent) -> None:
        """Append what was written, and let go of the oldest."""
        self.events.append(event)
        self.end = event.end
        self._bytes += event.size
        while len(self.events) > 1 and (self._bytes > TAIL_BYTES or len(self.events) > TAIL_EVENTS):
            oldest = self.events.popleft()
            self._bytes -= oldest.size
            self.floor = oldest.end

    def behind(self, position: OutputPosition) -> OutputEvent | None:
        """Return the oldest output behind a position at or above the floor, None for none."""
        found = None
        for event in reversed(self.events):
            if event.end <= position:
                break
            found = event
        return found.behind(position) if found else None


class WatchedJob:
    """One watched job with its watchers in this server."""

    __slots__ = (
        "error",
        "event",
        "joining",
        "known",
        "listeners",
        "news",
        "tail",
        "ulid",
        "waiting",
        "watchers",
    )

    def __init__(self, ulid: str) -> None:
        self.ulid = ulid
        self.event: JobEvent | None = None
        """The newest state; None before the first read, and when the job is gone."""
        self.known = False
        self.news = 0
        """Grows whenever there is something new."""
        self.error: StoreUnavailable | None = None
        self.watchers = 0
        self.listeners = 0
        """Those of the watchers that want output."""
        self.tail: Tail | None = None
        self.waiting: set[asyncio.Future[bool]] = set()
        """Watchers that wait for something new."""
        self.joining: list[asyncio.Future[bool]] = []
        """Watchers that wait for a read that begins after they came."""

    @property
    def record(self) -> bytes:
        """The record, b'' before the first read; it never changes, so it is read once."""
        return self.event.job.record if self.event else b""

    @property
    def position(self) -> str:
        """Where output is to be read from, as follow.lua takes it."""
        if not self.listeners or self.tail is None:
            return ""
        return f"{self.tail.end.attempt}-{self.tail.end.offset}"

    def enter(self, *, output: bool) -> None:
        """Count a watcher in, which wants output or not."""
        self.watchers += 1
        self.listeners += output

    def leave(self, *, output: bool) -> None:
        """Count a watcher out."""
        self.watchers -= 1
        self.listeners -= output
        if not self.listeners:
            self.tail = None

    def join(self) -> asyncio.Future[bool]:
        """Return what is done after a read that begins from now on; False: it failed."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.joining.append(future)
        return future

    def take_joining(self) -> list[asyncio.Future[bool]]:
        """Return those who wait for the read that begins now."""
        joining, self.joining = self.joining, []
        return joining

    def failed(self, joining: list[asyncio.Future[bool]], error: StoreUnavailable) -> None:
        """The read failed: those who have seen the job wait for the next, the others are told."""
        self.joining += [future for future in joining if not future.done()]
        if not self.known:
            self.error = error
            for future in self.take_joining():
                # Whoever came during the read may have left during it.
                if not future.done():
                    future.set_result(False)

    def update(self, row: Followed | None) -> bool:
        """Take over what was read; return whether it is news."""
        self.error = None
        self.known = True
        if row is None:
            news = self.event is not None
            self.event = None
            return news
        # Another is news, not only a higher one: a failover may have lost what made that.
        news = self.event is None or _version(row.job) != _version(self.event.job)
        # Output does not count as a revision; the event is made anew only where the state is.
        if self.event is None or news:
            self.event = JobEvent(row.job)
        else:
            self.event.job = row.job
        return self._add_output(row) or news if self.listeners else news

    def _add_output(self, row: Followed) -> bool:
        news = self.tail is None
        if self.tail is None:
            self.tail = Tail(row.job.output_end)
        elif self.tail.end < row.job.output_first:
            # Some was dropped before it could be read: those who are behind ask the store, which
            # tells them so.
            self.tail = Tail(row.job.output_first)
        for event in events_of(row.output):
            fresh = event.behind(self.tail.end)
            if fresh is not None:
                self.tail.add(fresh)
                news = True
        return news

    async def wait(self, timeout_s: float) -> bool:
        """Wait for something new; return False if nothing came."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self.waiting.add(future)
        timer = loop.call_later(timeout_s, _time_out, future)
        try:
            return await future
        finally:
            self.waiting.discard(future)
            timer.cancel()

    def tell(self) -> None:
        """Note something new, and wake every watcher that waits."""
        self.news += 1
        waiting, self.waiting = self.waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(True)


def _time_out(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)


def _version(job: Job) -> tuple[int, JobState, int]:
    return job.revision, job.state, job.fencing_token

"""The hub: one subscription for each watched queue, one read for each change of a watched job.

A watcher subscribes first and reads then, so that no change falls between its first answer and the
live ones. Events only say that a job changed; what it changed to is read from the store, for all
the watchers of this server at once. A lost event is repaired by the read that follows every
resubscription.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import monotonic

from jobwire_server.domain.background import heard
from jobwire_server.domain.errors import (
    CursorCompacted,
    JobNotFound,
    ServerDraining,
    StoreUnavailable,
)
from jobwire_server.domain.model import BEGINNING, Job, OutputPlace
from jobwire_server.store import keys
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.notices import Listener, Notices
from jobwire_server.watch.watched_job import JobEvent, OutputEvent, Topic, events_of
from jobwire_server.watch.watched_queue import Room

LINGER_S = 10.0
"""How long an unwatched queue stays subscribed."""
CATCH_UP_BYTES = 256 << 10
"""Output of one read by a watcher that is behind."""


@dataclass(frozen=True, slots=True)
class WatchWish:
    """What of a job is wanted, and from where."""

    states: bool = True
    """Every state; False: the terminal one only."""
    output: bool = True
    seen_revision: int = -1
    """States up to this one are not told again."""
    place: OutputPlace = BEGINNING
    """Output before this place is not told."""
    resumed: bool = False
    """True if what is behind the place must still be kept; False: the oldest that is kept will do.
    """
    latest: bool = False
    """True: the place is in the latest attempt, whatever attempt it names."""
    from_end: bool = False
    """True: only what is written from now on."""


EVERYTHING = WatchWish()


def encode_cursor(revision: int, place: OutputPlace) -> str:
    """Returns where a watcher stands, as text."""
    return f"{revision}-{place.attempt}-{place.offset}"


def decode_cursor(cursor: str) -> tuple[int, OutputPlace] | None:
    """Reads back what `encode_cursor` wrote; None for anything else."""
    parts = cursor.split("-")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    revision, attempt, offset = (int(part) for part in parts)
    return revision, OutputPlace(attempt, offset)


class Hub:
    """Feeds the watch streams of this server.

    Args:
        store: Where jobs are read.
        notices: Where events come from.
        bookmark_s: How long a stream may be quiet before it carries a sign of life.
    """

    def __init__(self, store: JobStore, notices: Notices, bookmark_s: float) -> None:
        self._store = store
        self._notices = notices
        self.bookmark_s = bookmark_s
        self._rooms: dict[str, Room] = {}
        self.draining = False
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to close rooms that are no longer watched."""
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep_for_ever(), name="watch-sweeper")

    async def watch(
        self, queue: str, ulid: str, wish: WatchWish
    ) -> AsyncIterator[tuple[JobEvent | OutputEvent | None, int, OutputPlace]]:
        """Yields the job as it stands, then every change and all output until the terminal state.

        With each event come the revision and the place that the watcher has reached; an event of
        None is a sign of life. A watcher that is slower than the changes is given the newest state
        only; output it is given whole.

        Raises:
            JobNotFound: There is none, or it was forgotten meanwhile.
            CursorCompacted: Output behind the wished place is no longer kept.
            StoreUnavailable: The first read failed.
            ServerDraining: The server shuts down.
        """
        room = await self.enter(queue)
        topic = room.topics.setdefault(ulid, Topic(ulid))
        topic.watchers += 1
        topic.listeners += wish.output
        try:
            if not await room.join(topic):
                raise topic.error or StoreUnavailable("the job could not be read")
            async for step in self._follow(room, topic, wish):
                yield step
        finally:
            topic.watchers -= 1
            topic.listeners -= wish.output
            if not topic.listeners:
                topic.tail = None
            if not topic.watchers:
                room.topics.pop(ulid, None)
                self.leave(room)

    async def _follow(
        self, room: Room, topic: Topic, wish: WatchWish
    ) -> AsyncIterator[tuple[JobEvent | OutputEvent | None, int, OutputPlace]]:
        job = self._job(room, topic)
        seen, place = wish.seen_revision, wish.place
        told: JobEvent | None = None
        if wish.from_end:
            place = job.output_end
        elif wish.latest:
            place = OutputPlace(job.attempt, place.offset)
        # A place that came from outside may lie inside a piece of output.
        inside = strict = wish.resumed
        while True:
            news = topic.news
            job = self._job(room, topic)
            event = topic.event
            fresh = event is not told and (told is not None or job.revision != seen)
            if event is not None and fresh and wish.states and not job.state.terminal:
                told, seen = event, job.revision
                yield event, seen, place
            if wish.output:
                output, place = await self._next_output(room, topic, job, place, inside, strict)
                strict = True
                for one in output:
                    inside = False
                    place = one.end
                    yield one, max(seen, 0), place
                if output:
                    continue
            # All output is told before the terminal state.
            behind = wish.output and place < job.output_end
            if event is not None and job.state.terminal and not behind:
                if fresh:
                    yield event, job.revision, place
                return
            if topic.news == news and not await self._wait(topic):
                yield None, max(seen, 0), place

    def _job(self, room: Room, topic: Topic) -> Job:
        if self.draining:
            raise ServerDraining
        if topic.event is None:
            raise JobNotFound(f"{room.queue}-{topic.ulid}")
        return topic.event.job

    async def _next_output(
        self,
        room: Room,
        topic: Topic,
        job: Job,
        place: OutputPlace,
        inside: bool,
        strict: bool,
    ) -> tuple[list[OutputEvent], OutputPlace]:
        """Returns the next output behind a place: the tail's, otherwise the store's.

        Args:
            room: Of the job.
            topic: The job.
            job: As it stands.
            place: What is before it was told.
            inside: True if the place may lie inside a piece.
            strict: True if everything behind the place must still be kept.
        """
        tail = topic.tail
        if tail is not None and place >= tail.floor:
            event = tail.behind(place)
            return ([event] if event else []), place
        if place >= job.output_end:
            return [], place
        wanted = ("~" if inside else "") + f"{place.attempt}-{place.offset}"
        row = (
            await self._store.follow(room.queue, [(topic.ulid, job.record, wanted)], CATCH_UP_BYTES)
        )[0]
        if row is None:
            raise JobNotFound(job.job_id)
        first = row.job.output_first
        if strict and place < first:
            raise CursorCompacted(
                f"output of {job.job_id} before offset {first.offset} of attempt {first.attempt} is"
                " no longer kept; go on from there",
                encode_cursor(0, first),
            )
        events = []
        for event in events_of(row.output):
            fresh = event.behind(place)
            if fresh is not None:
                events.append(fresh)
        # Nothing lies between here and the end of what was read.
        return events, (place if events or row.more else max(place, row.job.output_end))

    async def _wait(self, topic: Topic) -> bool:
        """Waits for something new; False when it is time for a sign of life."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        topic.waiting.add(future)
        timer = loop.call_later(self.bookmark_s, _time_out, future)
        try:
            news = await future
        finally:
            topic.waiting.discard(future)
            timer.cancel()
        if self.draining:
            raise ServerDraining
        return news

    def drain(self) -> None:
        """Ends every stream with ServerDraining, and refuses new ones."""
        self.draining = True
        for room in self._rooms.values():
            for topic in room.topics.values():
                topic.tell()
            for watcher in room.many:
                watcher.reset()

    async def stop(self) -> None:
        """Ends the readers."""
        self.drain()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
            self._sweeper = None
        rooms = [*self._rooms.values()]
        self._rooms.clear()
        for room in rooms:
            await room.stop()

    async def enter(self, queue: str) -> Room:
        """Returns the room of a queue once its events arrive.

        Those who come together wait for one subscription.

        Raises:
            ServerDraining: The server shuts down.
            StoreUnavailable: The store did not confirm the subscription.
        """
        if self.draining:
            raise ServerDraining
        room = self._rooms.get(queue)
        if room is None:
            room = self._rooms[queue] = Room(queue, self._store)
        room.empty_since = monotonic()
        if room.ready is None:
            room.ready = heard(asyncio.create_task(self._listen(room)))
        room.entering += 1
        try:
            await asyncio.shield(room.ready)
        except StoreUnavailable:
            room.ready = None
            raise
        finally:
            room.entering -= 1
        return room

    async def _listen(self, room: Room) -> None:
        try:
            for channel, listener in _channels(room):
                await self._notices.listen(channel, listener)
        except BaseException:
            await self._silence(room)
            raise

    async def _silence(self, room: Room) -> None:
        # Only this room's: another one of the queue may have been opened meanwhile.
        for channel, listener in _channels(room):
            await self._notices.silence(channel, listener)

    def leave(self, room: Room) -> None:
        """Notes that somebody left the room."""
        if room.empty:
            room.empty_since = monotonic()

    async def _sweep_for_ever(self) -> None:
        """Closes rooms that nobody has watched for a while; watchers come and go faster than
        subscriptions should.
        """
        while True:
            await asyncio.sleep(LINGER_S)
            for room in [*self._rooms.values()]:
                since = room.empty_since
                if room.empty and since is not None and monotonic() - since > LINGER_S:
                    del self._rooms[room.queue]
                    await self._silence(room)
                    await room.stop()


def _channels(room: Room) -> tuple[tuple[str, Listener], ...]:
    return (
        (keys.outputs_channel(room.queue), Listener(room.output, room.reset)),
        (keys.events_channel(room.queue), Listener(room.event, room.reset)),
    )


def _time_out(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)

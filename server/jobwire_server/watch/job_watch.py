"""The watch of jobs: one subscription for each queue, one read for each change of a watched job.

A watcher subscribes first and reads then, so that no change falls between its first answer and the
live ones. Events only say that a job changed; what it changed to is read from the store, for all
the watchers of this server at once. A lost event is repaired by the read that follows every
resubscription.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from jobwire_server.domain.background import Loop
from jobwire_server.domain.decisions.tokens import Seal
from jobwire_server.domain.errors import (
    CursorCompacted,
    JobNotFound,
    ServerDraining,
    StoreUnavailable,
)
from jobwire_server.domain.ids import job_id_of
from jobwire_server.domain.model import BEGINNING, Job, OutputPosition
from jobwire_server.store.notices import Notices
from jobwire_server.store.reads import ReadStore
from jobwire_server.store.tokens import Tokens
from jobwire_server.watch.watched_job import JobEvent, OutputEvent, WatchedJob, events_of
from jobwire_server.watch.watched_queue import WatchedQueue

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
    cursor: str = ""
    """Of an earlier watch of the job, which says what was seen and the position; '' for none."""
    seen_revision: int = -1
    """States up to this one are not told again."""
    position: OutputPosition = BEGINNING
    """Output before this position is not told."""
    resumed: bool = False
    """True if what is behind the position must still be kept; False: the oldest that is kept will
    do.
    """
    latest: bool = False
    """True: the position is in the latest attempt, whatever attempt it names."""
    from_end: bool = False
    """True: only what is written from now on."""


EVERYTHING = WatchWish()

JobCourse: TypeAlias = AsyncIterator[tuple[JobEvent | OutputEvent | None, str]]
"""What becomes of a job, each step with the cursor behind it; None is a sign of life."""
_Steps: TypeAlias = AsyncIterator[tuple[JobEvent | OutputEvent | None, int, OutputPosition]]


class JobWatch:
    """Feeds the watch streams of this server.

    Args:
        store: Where jobs are read.
        notices: Where events come from.
        tokens: Seal cursors.
        bookmark_s: How long a stream may be quiet before it carries a sign of life.
    """

    def __init__(
        self, store: ReadStore, notices: Notices, tokens: Tokens, bookmark_s: float
    ) -> None:
        self._store = store
        self._notices = notices
        self._tokens = tokens
        self.bookmark_s = bookmark_s
        self.queues: dict[str, WatchedQueue] = {}
        """Those that are watched, or were a moment ago."""
        self.draining = False
        self.sweeper = Loop("watch-sweeper", self._sweep, error_pause_s=LINGER_S)

    def start(self) -> None:
        """Begin to close what is no longer watched."""
        self.sweeper.start()

    async def watch(self, queue: str, ulid: str, wish: WatchWish) -> JobCourse:
        """Yield the job as it stands, then every change and all output until the terminal state.

        With each event comes the cursor behind it; an event of None is a sign of life. A watcher
        that is slower than the changes is given the newest state only; output it is given whole.

        Raises:
            BadPageToken: The cursor is not one of the job.
            JobNotFound: There is none, or it was forgotten meanwhile.
            CursorCompacted: Output behind the wished position is no longer kept.
            StoreUnavailable: The first read failed.
            ServerDraining: The server shuts down.
        """
        scope = "job", job_id_of(queue, ulid)
        if wish.cursor:
            text = await self._tokens.read(wish.cursor, *scope, field="cursor")
            seen, *reached = map(int, text.split())
            wish = replace(
                wish, seen_revision=seen, position=OutputPosition(*reached), resumed=True
            )
        watched = await self.enter(queue)
        job = watched.watch_job(ulid, output=wish.output)
        try:
            if not await watched.join(job):
                raise job.error or StoreUnavailable("the job could not be read")
            seal = await self._tokens.seal(*scope)
            async for event, revision, position in self._follow(watched, job, wish, seal):
                yield event, _cursor(seal, revision, position)
                if event is None:
                    # The key may have been replaced meanwhile.
                    seal = await self._tokens.seal(*scope)
        finally:
            watched.leave_job(job, output=wish.output)

    async def _follow(
        self, queue: WatchedQueue, watched: WatchedJob, wish: WatchWish, seal: Seal
    ) -> _Steps:
        job = self._job(queue, watched)
        seen, position = wish.seen_revision, wish.position
        told: JobEvent | None = None
        if wish.from_end:
            position = job.output_end
        elif wish.latest:
            position = OutputPosition(job.attempt, position.offset)
        # A position that came from outside may lie inside a piece of output.
        inside = strict = wish.resumed
        while True:
            news = watched.news
            job = self._job(queue, watched)
            event = watched.event
            fresh = event is not told and (told is not None or job.revision != seen)
            if event is not None and fresh and wish.states and not job.state.terminal:
                told, seen = event, job.revision
                yield event, seen, position
            if wish.output:
                output, position = await self._next_output(
                    queue, watched, job, position, inside, strict, seal
                )
                strict = True
                for one in output:
                    inside = False
                    position = one.end
                    yield one, max(seen, 0), position
                if output:
                    continue
            # All output is told before the terminal state.
            behind = wish.output and position < job.output_end
            if event is not None and job.state.terminal and not behind:
                if fresh:
                    yield event, job.revision, position
                return
            if watched.news == news and not await self._wait(watched):
                yield None, max(seen, 0), position

    def _job(self, queue: WatchedQueue, watched: WatchedJob) -> Job:
        if self.draining:
            raise ServerDraining
        if watched.event is None:
            raise JobNotFound(job_id_of(queue.queue, watched.ulid))
        return watched.event.job

    async def _next_output(
        self,
        queue: WatchedQueue,
        watched: WatchedJob,
        job: Job,
        position: OutputPosition,
        inside: bool,
        strict: bool,
        seal: Seal,
    ) -> tuple[list[OutputEvent], OutputPosition]:
        """Return the next output behind a position: the tail's, otherwise the store's.

        Args:
            queue: Of the job.
            watched: The job.
            job: As it stands.
            position: What is before it was told.
            inside: True if the position may lie inside a piece.
            strict: True if everything behind the position must still be kept.
            seal: Of cursors.
        """
        tail = watched.tail
        if tail is not None and position >= tail.floor:
            event = tail.behind(position)
            return ([event] if event else []), position
        if position >= job.output_end:
            return [], position
        wanted = ("~" if inside else "") + f"{position.attempt}-{position.offset}"
        row = (
            await self._store.follow(
                queue.queue, [(watched.ulid, job.record, wanted)], CATCH_UP_BYTES
            )
        )[0]
        if row is None:
            raise JobNotFound(job.job_id)
        first = row.job.output_first
        if strict and position < first:
            raise CursorCompacted(
                f"output of {job.job_id} before offset {first.offset} of attempt {first.attempt} is"
                " no longer kept; go on from there",
                _cursor(seal, 0, first),
            )
        events = []
        for event in events_of(row.output):
            fresh = event.behind(position)
            if fresh is not None:
                events.append(fresh)
        # Nothing lies between here and the end of what was read.
        return events, (position if events or row.more else max(position, row.job.output_end))

    async def _wait(self, watched: WatchedJob) -> bool:
        """Wait for something new; return False when it is time for a sign of life."""
        news = await watched.wait(self.bookmark_s)
        if self.draining:
            raise ServerDraining
        return news

    def drain(self) -> None:
        """End every stream with ServerDraining, and refuse new ones."""
        self.draining = True
        for watched in self.queues.values():
            watched.tell_all()

    async def stop(self) -> None:
        """End the readers; tolerates never started."""
        self.drain()
        await self.sweeper.stop()
        queues = [*self.queues.values()]
        self.queues.clear()
        for watched in queues:
            await watched.stop()

    async def enter(self, queue: str) -> WatchedQueue:
        """Return what is watched of a queue once its events arrive.

        Raises:
            ServerDraining: The server shuts down.
            StoreUnavailable: The store did not confirm the subscription.
        """
        if self.draining:
            raise ServerDraining
        watched = self.queues.get(queue)
        if watched is None:
            watched = self.queues[queue] = WatchedQueue(queue, self._store, self._notices)
        await watched.enter()
        return watched

    async def _sweep(self) -> float:
        """Close what nobody has watched for a while: watchers come and go faster than subscriptions
        should.
        """
        for watched in [*self.queues.values()]:
            if watched.empty_s > LINGER_S:
                del self.queues[watched.queue]
                await watched.close()
        return LINGER_S


def _cursor(seal: Seal, revision: int, position: OutputPosition) -> str:
    """Return where a watcher stands."""
    attempt, offset = position
    return seal.write(f"{revision} {attempt} {offset}")

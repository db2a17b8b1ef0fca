"""What producers follow: jobs whose ends, or whose changes, go to whoever waits for them.

A watch (job_watch.py) has a stream of its own and sees output as well; a follow is an entry in a
table. Events only say that jobs changed, and what became of them is read for many at once; the end
of a job that succeeds by a call of this server is told without any reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic
from typing import Protocol

import structlog

from jobwire_server.domain.background import Loop
from jobwire_server.domain.errors import JobNotFound, JobwireError, ServerDraining
from jobwire_server.domain.ids import QUEUE, ULID, JobId, job_id_of
from jobwire_server.domain.model import Job, JobState
from jobwire_server.store.reads import ReadStore
from jobwire_server.watch.job_watch import JobWatch
from jobwire_server.watch.watched_queue import WatchedQueue

log = structlog.get_logger(__name__)

READ_AT_ONCE = 200
"""Jobs of one read."""
RETRY_PAUSE_S = 0.25
REFRESH_S = 60.0
"""Every followed job is read this often whatever the events say."""
MAX_FOLLOWS = 500_000
"""Jobs that are followed on one server; each takes some 440 bytes."""
LINGER_S = 10.0
"""How long a queue of which nothing is followed stays subscribed."""


class Follower(Protocol):
    """Whoever follows jobs. None of these may block."""

    def job_succeeded(self, job_id: JobId, result: bytes) -> None:
        """A followed job has ended well; its follow is over."""

    def job_ended(self, job: Job) -> None:
        """A followed job has ended; its follow is over. The job comes without its record."""

    def job_changed(self, job: Job, *, full: bool) -> None:
        """A job whose changes are followed stands like this now; its end ends the follow."""

    def job_lost(self, job_id: JobId, error: JobwireError) -> None:
        """A follow is over, and its job has not ended."""


class Follow:
    """One job that one follower follows."""

    __slots__ = ("changes", "follower", "full", "held", "told", "ulid")

    def __init__(self, follower: Follower, ulid: str, *, changes: bool, full: bool) -> None:
        self.follower = follower
        self.ulid = ulid
        self.changes = changes
        """True: every change; False: the end alone."""
        self.full = full
        """How changes are told."""
        self.held = False
        """True while the job's submission is not answered: nothing is told before that."""
        self.told: tuple[int, JobState] | None = None
        """The state that was told last."""


class Room:
    """How many jobs may still be followed, over all queues."""

    def __init__(self, left: int) -> None:
        self.left = left


class FollowedQueue:
    """What is followed of one queue.

    Args:
        queue: Its name.
        watch: Where its events come from.
        store: Where jobs are read.
        room: What it shares with the other queues.
    """

    def __init__(self, queue: str, watch: JobWatch, store: ReadStore, room: Room) -> None:
        self.queue = queue
        self._room = room
        self.jobs: dict[str, list[Follow]] = {}
        """By ULID."""
        self.empty_since = monotonic()
        self._watch = watch
        self._store = store
        self._watched: WatchedQueue | None = None
        self._entering = asyncio.Lock()
        self._dirty: dict[str, None] = {}
        self._loop = Loop(f"follow-{queue}", self._read_next, error_pause_s=RETRY_PAUSE_S)
        self._loop.start()

    @property
    def subscribed(self) -> bool:
        """True while the queue's events arrive."""
        return self._watched is not None

    def job_id(self, follow: Follow) -> JobId:
        """Return the id of a followed job."""
        return job_id_of(self.queue, follow.ulid)

    async def subscribe(self) -> None:
        """Return once the queue's events arrive.

        Raises:
            ServerDraining: The server shuts down.
            StoreUnavailable: The store did not confirm the subscription.
        """
        async with self._entering:
            if self._watched is None:
                watched = await self._watch.enter(self.queue)
                watched.watch_many(self)
                self._watched = watched

    def add(self, follow: Follow) -> None:
        """Follow a job; whoever adds it also calls `look` or `answered`."""
        follows = self.jobs.setdefault(follow.ulid, [])
        self._room.left += len(follows)
        follows[:] = [each for each in follows if each.follower is not follow.follower]
        follows.append(follow)
        self._room.left -= len(follows)

    def drop(self, follower: Follower, ulid: str) -> None:
        """Follow a job no longer; harmless if it was not followed."""
        follows = [each for each in self.jobs.get(ulid, ()) if each.follower is not follower]
        if follows:
            self._room.left += len(self.jobs[ulid]) - len(follows)
            self.jobs[ulid] = follows
        else:
            self._forget(ulid)

    def _forget(self, ulid: str) -> list[Follow]:
        follows = self.jobs.pop(ulid, [])
        self._room.left += len(follows)
        if not self.jobs:
            self.empty_since = monotonic()
        return follows

    # ---------------------------------------------------------------- changes

    def look(self, ulid: str) -> None:
        """Read a job, and tell whoever follows it."""
        self._dirty[ulid] = None
        self._loop.wake()

    def answered(self, follow: Follow) -> None:
        """The submission of a followed job was answered."""
        follow.held = False
        if follow.changes or follow.ulid in self._dirty:
            self.look(follow.ulid)

    def succeeded(self, ulid: str, result: bytes) -> None:
        """A job has ended by a call of this server."""
        follows = self.jobs.get(ulid)
        if follows is None:
            return
        if any(follow.changes or follow.held for follow in follows):
            self.look(ulid)
            return
        job_id = job_id_of(self.queue, ulid)
        for follow in self._forget(ulid):
            follow.follower.job_succeeded(job_id, result)

    def changed(self, ulids: list[str], log_id: str, *, ends: bool) -> None:
        """Jobs changed; without `ends` none of them has ended."""
        jobs, woken = self.jobs, False
        for ulid in ulids:
            follows = jobs.get(ulid)
            if follows is not None and (ends or any(follow.changes for follow in follows)):
                self._dirty[ulid] = None
                woken = True
        if woken:
            self._loop.wake()

    def reset(self) -> None:
        """Events may have been missed: read everything afresh."""
        self._dirty.update(dict.fromkeys(self.jobs))
        self._loop.wake()

    # ------------------------------------------------------------------- read

    async def _read_next(self) -> float:
        if not self._dirty:
            # Not by `reset`: its call for another step would bring about this one for ever.
            self._dirty = dict.fromkeys(self.jobs)
        if self._dirty and self._watched is None:
            await self._begin()
        wanted: list[str] = []
        gone: list[str] = []
        # In the order in which they changed: none waits for those that change later.
        for ulid in self._dirty:
            if len(wanted) == READ_AT_ONCE:
                break
            if ulid not in self.jobs:
                gone.append(ulid)
            # One that is held is looked at once its submission is answered.
            elif not self._held(ulid):
                wanted.append(ulid)
        more = len(wanted) == READ_AT_ONCE
        for ulid in (*wanted, *gone):
            del self._dirty[ulid]
        if wanted:
            await self._read(wanted)
        return 0.0 if more else REFRESH_S

    async def _begin(self) -> None:
        """Subscribe, unless nothing of what is followed exists: anybody can name any queue."""
        unknown = [ulid for ulid in self._dirty if not self._held(ulid)][:READ_AT_ONCE]
        if len(unknown) == len(self.jobs):
            found = await self._store.outcomes(self.queue, unknown)
            for ulid, job in zip(unknown, found, strict=True):
                if job is None:
                    self._dirty.pop(ulid, None)
                    self._lose(ulid)
        if self.jobs:
            try:
                await self.subscribe()
            except ServerDraining as error:
                self.lose_all(error)

    def _held(self, ulid: str) -> bool:
        return any(follow.held for follow in self.jobs.get(ulid, ()))

    async def _read(self, ulids: list[str]) -> None:
        """Read jobs and tell what is new."""
        try:
            plain = [ulid for ulid in ulids if not self._wants(ulid, full=True)]
            whole = [ulid for ulid in ulids if self._wants(ulid, full=True)]
            basic = {ulid for ulid in plain if self._wants(ulid, full=False)}
            outcomes = [ulid for ulid in plain if ulid not in basic]
            rows: list[tuple[str, Job | None]] = []
            if outcomes:
                found = await self._store.outcomes(self.queue, outcomes)
                rows += zip(outcomes, found, strict=True)
            for some, full in ([*basic], False), (whole, True):
                if some:
                    found = await self._store.read(self.queue, some, full=full)
                    rows += zip(some, found, strict=True)
        except BaseException:
            self._dirty.update(dict.fromkeys(ulids))
            raise
        for ulid, job in rows:
            if job is None:
                self._lose(ulid)
            else:
                self._tell(ulid, job)

    def _wants(self, ulid: str, *, full: bool) -> bool:
        return any(each.changes and each.full is full for each in self.jobs.get(ulid, ()))

    def _lose(self, ulid: str) -> None:
        job_id = job_id_of(self.queue, ulid)
        for follow in self._forget(ulid):
            follow.follower.job_lost(job_id, JobNotFound(job_id))

    def _tell(self, ulid: str, job: Job) -> None:
        follows = self.jobs.get(ulid, ())
        if job.state.terminal:
            follows = self._forget(ulid)
        for follow in follows:
            if follow.changes:
                standing = job.revision, job.state
                if follow.told != standing:
                    follow.told = standing
                    follow.follower.job_changed(job, full=follow.full)
            elif job.state.terminal:
                follow.follower.job_ended(job)

    # -------------------------------------------------------------------- end

    def lose_all(self, error: JobwireError) -> None:
        """End every follow."""
        for ulid in [*self.jobs]:
            job_id = job_id_of(self.queue, ulid)
            for follow in self._forget(ulid):
                follow.follower.job_lost(job_id, error)

    async def close(self) -> None:
        """End the reader and the subscription; tolerates never subscribed."""
        await self._loop.stop()
        if self._watched is not None:
            self._watched.leave_many(self)
            self._watched = None


class Follows:
    """Everything that is followed here. `start` and `stop` are idempotent.

    Args:
        watch: Where events come from.
        store: Where jobs are read.
    """

    def __init__(self, watch: JobWatch, store: ReadStore) -> None:
        self._watch = watch
        self._store = store
        self._queues: dict[str, FollowedQueue] = {}
        self.room = Room(MAX_FOLLOWS)
        """How many jobs may still be followed here."""
        self._sweeper = Loop("follow-sweeper", self._sweep, error_pause_s=LINGER_S)

    def start(self) -> None:
        """Begin to close what is no longer followed."""
        self._sweeper.start()

    async def stop(self) -> None:
        """End everything; tolerates never started."""
        await self._sweeper.stop()
        queues = [*self._queues.values()]
        self._queues.clear()
        for followed in queues:
            await followed.close()

    def of(self, queue: str) -> FollowedQueue | None:
        """Return what is followed of a queue; None if nothing is."""
        followed = self._queues.get(queue)
        return followed if followed is not None and followed.jobs else None

    def queue(self, name: str) -> FollowedQueue:
        """Return what is followed of a queue."""
        followed = self._queues.get(name)
        if followed is None:
            followed = self._queues[name] = FollowedQueue(name, self._watch, self._store, self.room)
        followed.empty_since = monotonic()
        return followed

    def begin(self, follower: Follower, job_id: JobId, *, changes: bool, full: bool) -> None:
        """Follow a job, which is told as it stands, or as it ended, as soon as it is read."""
        followed = self.queue(job_id[QUEUE])
        followed.add(Follow(follower, job_id[ULID], changes=changes, full=full))
        followed.look(job_id[ULID])

    def end(self, follower: Follower, job_ids: Iterable[JobId]) -> None:
        """Follow jobs no longer; unknown ones are fine."""
        for job_id in job_ids:
            followed = self._queues.get(job_id[QUEUE])
            if followed is not None:
                followed.drop(follower, job_id[ULID])

    async def _sweep(self) -> float:
        for followed in [*self._queues.values()]:
            if not followed.jobs and monotonic() - followed.empty_since > LINGER_S:
                del self._queues[followed.queue]
                await followed.close()
        return LINGER_S

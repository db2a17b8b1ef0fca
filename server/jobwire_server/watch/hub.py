"""The hub: one subscription for each watched queue, one read for each change of a watched job.

A watcher subscribes first and reads then, so that no change falls between its first answer and the
live ones. Events only say that a job changed; what it changed to is read from the store, for all
the watchers of this server at once. A lost event is repaired by the read that follows every
resubscription.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import structlog

from jobwire_server.errors import JobNotFound, ServerDraining, StoreUnavailable
from jobwire_server.ids import ULID_LENGTH
from jobwire_server.model import Job
from jobwire_server.store import keys
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.notices import Listener, Notices

log = structlog.get_logger(__name__)

READ_AT_ONCE = 200
"""Jobs of one read; bounds how long the store is held and how much is in memory."""
RETRY_PAUSE_S = 0.25
LINGER_S = 10.0
"""How long an unwatched queue stays subscribed."""
REFRESH_S = 20.0
"""Every watched job is read this often whatever the events say: a net under anything that could
lose one.
"""


class _Watched:
    """One job with its watchers in this server."""

    __slots__ = ("changed", "error", "job", "known", "reads", "watchers")

    def __init__(self) -> None:
        self.job: Job | None = None
        self.known = False
        self.reads = 0
        self.error: StoreUnavailable | None = None
        self.watchers = 0
        self.changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def tell(self) -> None:
        """Wakes every watcher."""
        changed, self.changed = self.changed, asyncio.get_running_loop().create_future()
        if not changed.done():
            changed.set_result(None)


class _QueueWatch:
    """The watched jobs of one queue."""

    def __init__(self, queue: str, store: JobStore) -> None:
        self.queue = queue
        self.jobs: dict[str, _Watched] = {}
        self.reading: set[str] = set()
        """Jobs whose read is under way."""
        self.ready: asyncio.Task[None] | None = None
        self.empty_since: float | None = None
        self._store = store
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._read_for_ever(), name=f"watch-{queue}")

    def event(self, data: bytes) -> None:
        """Jobs changed: their ULIDs, end to end."""
        text = data.decode()
        jobs = self.jobs
        for at in range(0, len(text), ULID_LENGTH):
            ulid = text[at : at + ULID_LENGTH]
            if ulid in jobs:
                self.mark(ulid)

    def mark(self, ulid: str) -> None:
        """Has the job read afresh."""
        self._dirty[ulid] = None
        self._wake.set()

    def mark_all(self) -> None:
        """Has every watched job read afresh."""
        for ulid in self.jobs:
            self._dirty[ulid] = None
        self._wake.set()

    async def stop(self) -> None:
        """Ends the reader."""
        tasks = [self._task, *([self.ready] if self.ready else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read_for_ever(self) -> None:
        while True:
            if not self._dirty:
                self._wake.clear()
                try:
                    async with asyncio.timeout(REFRESH_S):
                        await self._wake.wait()
                except TimeoutError:
                    self.mark_all()
            batch = [*self._dirty][:READ_AT_ONCE]
            for ulid in batch:
                del self._dirty[ulid]
            batch = [ulid for ulid in batch if ulid in self.jobs]
            if not batch:
                continue
            self.reading = set(batch)
            try:
                rows = await self._store.read(self.queue, batch, full=True)
            except StoreUnavailable as error:
                self._postpone(batch, error)
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            except Exception:
                log.exception("watched jobs not read", queue=self.queue)
                self._postpone(batch, StoreUnavailable("the job could not be read"))
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            finally:
                self.reading = set()
            for ulid, job in zip(batch, rows, strict=True):
                self._update(ulid, job)

    def _postpone(self, batch: list[str], error: StoreUnavailable) -> None:
        """Those who have seen the job wait for the store; those who have not are told."""
        for ulid in batch:
            watched = self.jobs.get(ulid)
            if watched is not None:
                self._dirty[ulid] = None
                if not watched.known:
                    watched.error = error
                    watched.tell()

    def _update(self, ulid: str, job: Job | None) -> None:
        watched = self.jobs.get(ulid)
        if watched is None:
            return
        watched.reads += 1
        watched.error = None
        first = not watched.known
        watched.known = True
        newer = job is None or watched.job is None or job.revision > watched.job.revision
        if newer:
            watched.job = job
        # A watcher that came during an earlier read waits for this one, whether or not it brings
        # anything new.
        if newer or first or watched.watchers > 0:
            watched.tell()


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
        self._bookmark_s = bookmark_s
        self._queues: dict[str, _QueueWatch] = {}
        self._draining = False
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to close rooms that are no longer watched."""
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep_for_ever(), name="watch-sweeper")

    async def watch(self, queue: str, ulid: str) -> AsyncIterator[Job | None]:
        """Yields the job as it stands, then at every change until its terminal state; None is a
        sign of life.

        A watcher that is slower than the changes is given the newest state only.

        Raises:
            JobNotFound: There is none, or it was forgotten meanwhile.
            StoreUnavailable: The first read failed.
            ServerDraining: The server shuts down.
        """
        if self._draining:
            raise ServerDraining
        room = self._enter(queue)
        watched = room.jobs.setdefault(ulid, _Watched())
        watched.watchers += 1
        try:
            await self._subscribed(room)
            async for job in self._follow(room, watched, ulid):
                yield job
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                room.jobs.pop(ulid, None)
                if not room.jobs:
                    room.empty_since = monotonic()

    async def _follow(
        self, room: _QueueWatch, watched: _Watched, ulid: str
    ) -> AsyncIterator[Job | None]:
        # A read that is under way began before this watcher was subscribed and does not count.
        enough = watched.reads + (2 if ulid in room.reading else 1)
        room.mark(ulid)
        while watched.reads < enough:
            changed = watched.changed
            await self._wait(changed, None)
            if watched.error:
                raise watched.error
            if watched.reads < enough:
                room.mark(ulid)
        seen = -1
        while True:
            job, changed = watched.job, watched.changed
            if job is None:
                raise JobNotFound(f"{room.queue}-{ulid}")
            if job.revision > seen:
                seen = job.revision
                yield job
                if job.state.terminal:
                    return
            elif not await self._wait(changed, self._bookmark_s):
                yield None

    async def _wait(self, changed: asyncio.Future[None], timeout_s: float | None) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(changed)
        except TimeoutError:
            return False
        if self._draining:
            raise ServerDraining
        return True

    def drain(self) -> None:
        """Ends every stream with ServerDraining, and refuses new ones."""
        self._draining = True
        for room in self._queues.values():
            for watched in room.jobs.values():
                watched.tell()

    async def stop(self) -> None:
        """Ends the readers."""
        self.drain()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
            self._sweeper = None
        rooms = [*self._queues.values()]
        self._queues.clear()
        for room in rooms:
            await room.stop()

    def _enter(self, queue: str) -> _QueueWatch:
        room = self._queues.get(queue)
        if room is None:
            room = self._queues[queue] = _QueueWatch(queue, self._store)
        return room

    async def _subscribed(self, room: _QueueWatch) -> None:
        """Returns once the events of the queue arrive; watchers that come together wait for one
        subscription.
        """
        if room.ready is None:
            listener = Listener(room.event, room.mark_all)
            room.ready = asyncio.create_task(
                self._notices.listen(keys.events_channel(room.queue), listener)
            )
        try:
            await asyncio.shield(room.ready)
        except StoreUnavailable:
            room.ready = None
            raise

    async def _sweep_for_ever(self) -> None:
        """Closes rooms that nobody has watched for a while; watchers come and go faster than
        subscriptions should.
        """
        while True:
            await asyncio.sleep(LINGER_S)
            for room in [*self._queues.values()]:
                since = room.empty_since
                if not room.jobs and since is not None and monotonic() - since > LINGER_S:
                    del self._queues[room.queue]
                    await self._notices.silence(keys.events_channel(room.queue))
                    await room.stop()

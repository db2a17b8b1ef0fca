"""The watched jobs of one queue: one subscription, one reader."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol

import structlog

from jobwire_server.domain.background import Loop, heard
from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.domain.ids import split_ulids
from jobwire_server.domain.model import Job, JobState
from jobwire_server.store import keys
from jobwire_server.store.notices import Listener, Notices
from jobwire_server.store.reads import Followed, ReadStore
from jobwire_server.watch.watched_job import JobEvent, Tail, WatchedJob, events_of

log = structlog.get_logger(__name__)

READ_AT_ONCE = 200
"""Jobs of one read; bounds how long the store is held and how much is in memory."""
OUTPUT_AT_ONCE = 64 << 10
"""Output of one job in one read of many."""
RETRY_PAUSE_S = 0.25
REFRESH_S = 60.0
"""Every watched job is read this often whatever the events say: a net under anything that could
lose one.
"""


class ManyWatcher(Protocol):
    """Whoever watches the queue as a whole."""

    def changed(self, ulids: list[str], log_id: str) -> None:
        """Jobs changed; `log_id` is that of the event in the queue's log, '' without a log."""

    def reset(self) -> None:
        """Events may have been missed."""


def split_event(data: bytes) -> tuple[str, list[str]]:
    """Read an event: the id in the queue's log ('' without one), and the ULIDs."""
    text = data.decode()
    log_id = ""
    if text.startswith("#"):
        log_id, _, text = text[1:].partition("#")
    return log_id, split_ulids(text)


class WatchedQueue:
    """What is watched of one queue in this server."""

    def __init__(self, queue: str, store: ReadStore, notices: Notices) -> None:
        self.queue = queue
        self.jobs: dict[str, WatchedJob] = {}
        self.many: set[ManyWatcher] = set()
        self._store = store
        self._notices = notices
        self._subscription: asyncio.Task[None] | None = None
        self._entering = 0
        """Those who wait for the subscription."""
        self._empty_since = monotonic()
        self._dirty: dict[str, None] = {}
        self._loop = Loop(f"watch-{queue}", self._read_next, error_pause_s=RETRY_PAUSE_S)
        self._loop.start()

    async def enter(self) -> None:
        """Return once the queue's events arrive; those who come together wait for one subscription.

        Raises:
            StoreUnavailable: The store did not confirm the subscription.
        """
        self._empty_since = monotonic()
        if self._subscription is None:
            self._subscription = heard(asyncio.create_task(self._subscribe()))
        self._entering += 1
        try:
            await asyncio.shield(self._subscription)
        except StoreUnavailable:
            self._subscription = None
            raise
        finally:
            self._entering -= 1

    def watch_job(self, ulid: str, *, output: bool) -> WatchedJob:
        """Count in a watcher of a job."""
        job = self.jobs.setdefault(ulid, WatchedJob(ulid))
        job.enter(output=output)
        return job

    def leave_job(self, job: WatchedJob, *, output: bool) -> None:
        """Count out a watcher of a job."""
        job.leave(output=output)
        if not job.watchers:
            self.jobs.pop(job.ulid, None)
            self._note_if_empty()

    def watch_many(self, watcher: ManyWatcher) -> None:
        """Count in a watcher of the queue as a whole."""
        self.many.add(watcher)

    def leave_many(self, watcher: ManyWatcher) -> None:
        """Count out a watcher of the queue as a whole."""
        self.many.discard(watcher)
        self._note_if_empty()

    def _note_if_empty(self) -> None:
        if self.empty:
            self._empty_since = monotonic()

    @property
    def watched(self) -> bool:
        """True until it is closed."""
        return self._loop.runs

    @property
    def empty(self) -> bool:
        """True if nobody watches anything here, or is about to."""
        return not self.jobs and not self.many and not self._entering

    @property
    def empty_s(self) -> float:
        """For how long it has been empty, seconds; 0 while it is not."""
        return monotonic() - self._empty_since if self.empty else 0.0

    def tell_all(self) -> None:
        """Have every watcher look at how things stand."""
        for job in self.jobs.values():
            job.tell()
        for watcher in self.many:
            watcher.reset()

    def event(self, data: bytes) -> None:
        """Jobs changed."""
        log_id, ulids = split_event(data)
        for ulid in ulids:
            if ulid in self.jobs:
                self.mark(ulid)
        for watcher in self.many:
            watcher.changed(ulids, log_id)

    def output(self, data: bytes) -> None:
        """Jobs wrote output."""
        for ulid in split_event(data)[1]:
            job = self.jobs.get(ulid)
            if job is not None and job.listeners:
                self.mark(ulid)

    def reset(self) -> None:
        """Events may have been missed: reads everything afresh."""
        self.mark_all()
        for watcher in self.many:
            watcher.reset()

    def mark(self, ulid: str) -> None:
        """Have the job read afresh."""
        self._dirty[ulid] = None
        self._loop.wake()

    def mark_all(self) -> None:
        """Have every watched job read afresh."""
        for ulid in self.jobs:
            self._dirty[ulid] = None
        self._loop.wake()

    def join(self, job: WatchedJob) -> asyncio.Future[bool]:
        """Have the job read afresh; the future is done after a read that begins from now on."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        job.joining.append(future)
        self.mark(job.ulid)
        return future

    async def stop(self) -> None:
        """End the reader; tolerates never entered."""
        await self._loop.stop()
        if self._subscription is not None:
            self._subscription.cancel()
            await asyncio.gather(self._subscription, return_exceptions=True)

    async def close(self) -> None:
        """End the subscription and the reader."""
        await self._unsubscribe()
        await self.stop()

    async def _subscribe(self) -> None:
        try:
            for channel, listener in self._channels():
                await self._notices.listen(channel, listener)
        except BaseException:
            await self._unsubscribe()
            raise

    async def _unsubscribe(self) -> None:
        # Its own only: the queue may be watched anew meanwhile.
        for channel, listener in self._channels():
            await self._notices.silence(channel, listener)

    def _channels(self) -> tuple[tuple[str, Listener], ...]:
        return (
            (keys.outputs_channel(self.queue), Listener(self.output, self.reset)),
            (keys.events_channel(self.queue), Listener(self.event, self.reset)),
        )

    async def _read_next(self) -> float:
        """Read some of the jobs that changed; without any, after a while, all of them."""
        if not self._dirty:
            self.mark_all()
        ulids = [*self._dirty][:READ_AT_ONCE]
        for ulid in ulids:
            del self._dirty[ulid]
        jobs = [self.jobs[ulid] for ulid in ulids if ulid in self.jobs]
        if jobs:
            await self._read(jobs)
        return 0.0 if self._dirty else REFRESH_S

    async def _read(self, jobs: list[WatchedJob]) -> None:
        """Read jobs, and tells whoever came before the read began."""
        joining = [(job, job.joining) for job in jobs]
        for job in jobs:
            job.joining = []
        wanted = [(job.ulid, job.record, job.position) for job in jobs]
        try:
            rows = await self._store.follow(self.queue, wanted, OUTPUT_AT_ONCE)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, StoreUnavailable):
                log.exception("watched jobs not read", queue=self.queue)
                error = StoreUnavailable("the job could not be read")
            for job, futures in joining:
                self._postpone(job, futures, error)
            await asyncio.sleep(RETRY_PAUSE_S)
            return
        for job, row in zip(jobs, rows, strict=True):
            if self._update(job, row):
                job.tell()
        for _, futures in joining:
            for future in futures:
                if not future.done():
                    future.set_result(True)

    def _postpone(
        self, job: WatchedJob, futures: list[asyncio.Future[bool]], error: StoreUnavailable
    ) -> None:
        """Those who have seen the job wait for the store; those who have not are told."""
        self._dirty[job.ulid] = None
        job.joining += [future for future in futures if not future.done()]
        if not job.known:
            job.error = error
            for future in job.joining:
                # Whoever came during the read may have left during it.
                if not future.done():
                    future.set_result(False)
            job.joining = []

    def _update(self, job: WatchedJob, row: Followed | None) -> bool:
        """Take over what was read; True if it is news."""
        job.error = None
        job.known = True
        if row is None:
            news = job.event is not None
            job.event = None
            return news
        # Another is news, not only a higher one: a failover may have lost what made that.
        news = job.event is None or _version(row.job) != _version(job.event.job)
        # Output does not count as a revision; the event is made anew only where the state is.
        if job.event is None or news:
            job.event = JobEvent(row.job)
        else:
            job.event.job = row.job
        if job.listeners:
            if job.tail is None:
                job.tail = Tail(row.job.output_end)
                news = True
            elif job.tail.end < row.job.output_first:
                # Some was dropped before it could be read: those who are behind ask the store,
                # which tells them so.
                job.tail = Tail(row.job.output_first)
            for event in events_of(row.output):
                fresh = event.behind(job.tail.end)
                if fresh is not None:
                    job.tail.add(fresh)
                    news = True
            if row.more:
                self.mark(job.ulid)
        return news


def _version(job: Job) -> tuple[int, JobState, int]:
    return job.revision, job.state, job.fencing_token

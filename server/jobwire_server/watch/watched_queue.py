"""The watched jobs of one queue: one subscription, one reader."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol

import structlog

from jobwire_server.domain.background import Loop, heard
from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.domain.ids import split_ulids
from jobwire_server.store import keys
from jobwire_server.store.notices import Listener, Notices
from jobwire_server.store.reads import ReadStore
from jobwire_server.watch.watched_job import WatchedJob

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

    def changed(self, ulids: list[str], log_id: str, *, ends: bool) -> None:
        """Jobs changed; `log_id` is that of the event in the queue's log, '' without a log. Without
        `ends` none of them has ended.
        """

    def reset(self) -> None:
        """Events may have been missed."""


def split_event(data: bytes) -> tuple[str, list[str], bool]:
    """Read an event: the id in the queue's log ('' without one), the ULIDs, and whether some of
    these jobs may have ended.
    """
    text = data.decode()
    log_id = ""
    if text.startswith("#"):
        log_id, _, text = text[1:].partition("#")
    ends = not text.endswith("+")
    return log_id, split_ulids(text if ends else text[:-1]), ends


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
        log_id, ulids, ends = split_event(data)
        for ulid in ulids:
            if ulid in self.jobs:
                self.mark(ulid)
        for watcher in self.many:
            watcher.changed(ulids, log_id, ends=ends)

    def output(self, data: bytes) -> None:
        """Jobs wrote output."""
        for ulid in split_event(data)[1]:
            job = self.jobs.get(ulid)
            if job is not None and job.listeners:
                self.mark(ulid)

    def reset(self) -> None:
        """Events may have been missed: read everything afresh."""
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
        self.mark(job.ulid)
        return job.join()

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
            # Not by `mark_all`: its call for another step would bring about this one for ever.
            self._dirty = dict.fromkeys(self.jobs)
        ulids = [*self._dirty][:READ_AT_ONCE]
        for ulid in ulids:
            del self._dirty[ulid]
        jobs = [self.jobs[ulid] for ulid in ulids if ulid in self.jobs]
        if jobs:
            await self._read(jobs)
        return 0.0 if self._dirty else REFRESH_S

    async def _read(self, jobs: list[WatchedJob]) -> None:
        """Read jobs, and tell whoever came before the read began."""
        # Whoever comes from now on waits for the next read.
        joining = [(job, job.take_joining()) for job in jobs]
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
                self._dirty[job.ulid] = None
                job.failed(futures, error)
            await asyncio.sleep(RETRY_PAUSE_S)
            return
        for job, row in zip(jobs, rows, strict=True):
            if job.update(row):
                job.tell()
            if row is not None and row.more and job.listeners:
                self.mark(job.ulid)
        for _, futures in joining:
            for future in futures:
                if not future.done():
                    future.set_result(True)

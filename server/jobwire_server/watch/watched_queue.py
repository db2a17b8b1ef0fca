"""The watched jobs of one queue: one subscription, one reader."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.domain.ids import ULID_LENGTH
from jobwire_server.domain.model import Job, JobState
from jobwire_server.store.jobs import Followed, JobStore
from jobwire_server.watch.watched_job import JobEvent, Tail, Topic, events_of

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
    """Reads an event: the id in the queue's log ('' without one), and the ULIDs."""
    text = data.decode()
    log_id = ""
    if text.startswith("#"):
        log_id, _, text = text[1:].partition("#")
    return log_id, [text[at : at + ULID_LENGTH] for at in range(0, len(text), ULID_LENGTH)]


class Room:
    """What is watched of one queue in this server."""

    def __init__(self, queue: str, store: JobStore) -> None:
        self.queue = queue
        self.topics: dict[str, Topic] = {}
        self.many: set[ManyWatcher] = set()
        self.ready: asyncio.Task[None] | None = None
        self.entering = 0
        """Those who wait for the subscription."""
        self.empty_since: float | None = None
        self._store = store
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._read_for_ever(), name=f"watch-{queue}")

    @property
    def empty(self) -> bool:
        """True if nobody watches anything here, or is about to."""
        return not self.topics and not self.many and not self.entering

    def event(self, data: bytes) -> None:
        """Jobs changed."""
        log_id, ulids = split_event(data)
        for ulid in ulids:
            if ulid in self.topics:
                self.mark(ulid)
        for watcher in self.many:
            watcher.changed(ulids, log_id)

    def output(self, data: bytes) -> None:
        """Jobs wrote output."""
        for ulid in split_event(data)[1]:
            topic = self.topics.get(ulid)
            if topic is not None and topic.listeners:
                self.mark(ulid)

    def reset(self) -> None:
        """Events may have been missed: reads everything afresh."""
        self.mark_all()
        for watcher in self.many:
            watcher.reset()

    def mark(self, ulid: str) -> None:
        """Has the job read afresh."""
        self._dirty[ulid] = None
        self._wake.set()

    def mark_all(self) -> None:
        """Has every watched job read afresh."""
        for ulid in self.topics:
            self._dirty[ulid] = None
        self._wake.set()

    def join(self, topic: Topic) -> asyncio.Future[bool]:
        """Has the job read afresh; the future is done after a read that begins from now on."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        topic.joining.append(future)
        self.mark(topic.ulid)
        return future

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
            ulids = [*self._dirty][:READ_AT_ONCE]
            for ulid in ulids:
                del self._dirty[ulid]
            topics = [self.topics[ulid] for ulid in ulids if ulid in self.topics]
            if topics:
                await self._read(topics)

    async def _read(self, topics: list[Topic]) -> None:
        """Reads jobs, and tells whoever came before the read began."""
        joining = [(topic, topic.joining) for topic in topics]
        for topic in topics:
            topic.joining = []
        wanted = [(topic.ulid, topic.record, topic.place) for topic in topics]
        try:
            rows = await self._store.follow(self.queue, wanted, OUTPUT_AT_ONCE)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, StoreUnavailable):
                log.exception("watched jobs not read", queue=self.queue)
                error = StoreUnavailable("the job could not be read")
            for topic, futures in joining:
                self._postpone(topic, futures, error)
            await asyncio.sleep(RETRY_PAUSE_S)
            return
        for topic, row in zip(topics, rows, strict=True):
            if self._update(topic, row):
                topic.tell()
        for _, futures in joining:
            for future in futures:
                if not future.done():
                    future.set_result(True)

    def _postpone(
        self, topic: Topic, futures: list[asyncio.Future[bool]], error: StoreUnavailable
    ) -> None:
        """Those who have seen the job wait for the store; those who have not are told."""
        self._dirty[topic.ulid] = None
        topic.joining += [future for future in futures if not future.done()]
        if not topic.known:
            topic.error = error
            for future in topic.joining:
                # Whoever came during the read may have left during it.
                if not future.done():
                    future.set_result(False)
            topic.joining = []

    def _update(self, topic: Topic, row: Followed | None) -> bool:
        """Takes over what was read; True if it is news."""
        topic.error = None
        topic.known = True
        if row is None:
            news = topic.event is not None
            topic.event = None
            return news
        # Another is news, not only a higher one: a failover may have lost what made that.
        news = topic.event is None or _version(row.job) != _version(topic.event.job)
        # Output does not count as a revision; the event is made anew only where the state is.
        if topic.event is None or news:
            topic.event = JobEvent(row.job)
        else:
            topic.event.job = row.job
        if topic.listeners:
            if topic.tail is None:
                topic.tail = Tail(row.job.output_end)
                news = True
            elif topic.tail.end < row.job.output_first:
                # Some was dropped before it could be read: those who are behind ask the store,
                # which tells them so.
                topic.tail = Tail(row.job.output_first)
            for event in events_of(row.output):
                fresh = event.behind(topic.tail.end)
                if fresh is not None:
                    topic.tail.add(fresh)
                    news = True
            if row.more:
                self.mark(topic.ulid)
        return news


def _version(job: Job) -> tuple[int, JobState, int]:
    return job.revision, job.state, job.fencing_token

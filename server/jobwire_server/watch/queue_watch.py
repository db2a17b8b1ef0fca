"""Watching a queue as a whole: every change of every job that a filter lets through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from jobwire_server.domain.decisions.filters import JobFilter
from jobwire_server.domain.errors import CursorCompacted, QueueNotFound, ServerDraining, WatchLagged
from jobwire_server.domain.ids import ULID
from jobwire_server.domain.model import Job, JobState
from jobwire_server.domain.records import RecordCodec
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.reads import PageToken, ReadStore
from jobwire_server.store.tokens import Tokens
from jobwire_server.watch.job_watch import JobWatch

MOST_WAITING = 100_000
"""Changed jobs that may wait for one watcher, some 10 MB; one that is further behind has to begin
anew.
"""
AT_ONCE = 200
"""Jobs of one read."""
LEASED_AT_ONCE = 1_000
"""Jobs of one list of those with a lease, each of which goes through all of them."""
LIVE = (JobState.SCHEDULED, JobState.PENDING, JobState.RUNNING, JobState.CANCELLING)


class CaughtUp:
    """Says that everything that was there at the beginning has been told."""


CAUGHT_UP = CaughtUp()


class QueueWatcher:
    """One watcher of a queue: remembers which jobs changed since it last looked."""

    def __init__(self) -> None:
        self.waiting: dict[str, None] = {}
        self.log_id = ""
        self.missed = False
        self.lagged = False
        self._wake = asyncio.Event()

    def changed(self, ulids: list[str], log_id: str, *, ends: bool) -> None:
        """Note changed jobs; a job that changes again is told once, as it stands then."""
        if len(self.waiting) > MOST_WAITING:
            self.lagged = True
            self.waiting.clear()
        elif not self.lagged:
            self.waiting.update(dict.fromkeys(ulids))
        self.log_id = log_id or self.log_id
        self._wake.set()

    def reset(self) -> None:
        """Note that events may have been missed."""
        self.missed = True
        self._wake.set()

    def has_missed(self) -> bool:
        """Return whether events may have been missed since it was asked last."""
        missed, self.missed = self.missed, False
        return missed

    async def wait(self, timeout_s: float) -> bool:
        """Wait for something to look at; return False if nothing came."""
        if not self.waiting and not self.missed and not self.lagged:
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return False
        return True

    def take(self) -> list[str]:
        """Return some of the changed jobs, oldest change first."""
        ulids = [*self.waiting][:AT_ONCE]
        for ulid in ulids:
            del self.waiting[ulid]
        return ulids


class Told:
    """Which jobs a watcher knows, so that each is told once more when it leaves what is wanted.

    Args:
        states: The states that are wanted; empty: all.
        resumed: True if a former watch may have told jobs as well.
    """

    def __init__(self, states: Sequence[JobState], *, resumed: bool) -> None:
        self._states = states
        # Only live jobs leave a state.
        self._resumed = resumed and any(not state.terminal for state in states)
        self.live: set[str] = set()
        """Jobs that were told and have not ended."""
        self._left: set[str] = set()
        """Live jobs that a resumed watcher was told to have left."""

    def admits(self, job: Job) -> bool:
        """Return whether a job is to be told as it stands, and take it for told."""
        ulid = job.job_id[ULID]
        known = ulid in self.live
        wanted = not self._states or job.state in self._states
        # What a former watch told is not known: what may have been told is told to have left.
        left = known or (self._resumed and ulid not in self._left)
        _put(self.live, ulid, wanted and not job.state.terminal)
        if self._resumed:
            _put(self._left, ulid, not wanted and not job.state.terminal)
        return wanted or left


def _put(ulids: set[str], ulid: str, inside: bool) -> None:
    if inside:
        ulids.add(ulid)
    else:
        ulids.discard(ulid)


class QueueWatch:
    """Feeds WatchJobs.

    Args:
        jobs: Where events come from.
        store: Where jobs are read.
        queues: Which queues there are.
        records: Reads what jobs are about.
        tokens: Seal cursors.
    """

    def __init__(
        self,
        jobs: JobWatch,
        store: ReadStore,
        queues: QueueStore,
        records: RecordCodec,
        tokens: Tokens,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._queues = queues
        self._records = records
        self._tokens = tokens

    async def watch(
        self,
        wanted: JobFilter,
        *,
        full: bool = False,
        cursor: str = "",
        only_changes: bool = False,
    ) -> AsyncIterator[tuple[Job | CaughtUp | None, str]]:
        """Yield jobs with the cursor behind each; None is a sign of life.

        A cursor seals the entry of the queue's log up to which all was told, and is '' where there
        is none.

        Args:
            wanted: The jobs of one queue. One that leaves the states wanted is told once more.
            full: With payloads, results and attempts.
            cursor: The last one of a former watch; '' to begin.
            only_changes: True: without what is there at the beginning.

        Raises:
            BadPageToken: The cursor is not one of a watch with this filter.
            QueueNotFound: No job was ever submitted to the queue.
            CursorCompacted: The queue's log does not reach back to the cursor, or it keeps none.
            WatchLagged: Too many changes waited.
            ServerDraining: The server shuts down.
        """
        scope = ("jobs-watch", *wanted.scope())
        began = ""
        if cursor:
            began = await self._tokens.read(cursor, *scope, field="cursor")
        seal = await self._tokens.seal(*scope)
        sealed_at, sealed = "", ""
        steps = self._watch(wanted, full=full, began=began, only_changes=only_changes)
        async with aclosing(steps):
            async for job, at in steps:
                if at != sealed_at:
                    sealed_at, sealed = at, seal.write(at) if at else ""
                yield job, sealed
                if job is None:
                    # The key may have been replaced meanwhile.
                    seal, sealed_at = await self._tokens.seal(*scope), ""

    async def _watch(
        self, wanted: JobFilter, *, full: bool, began: str, only_changes: bool
    ) -> AsyncGenerator[tuple[Job | CaughtUp | None, str]]:
        """Yield jobs with the entry of the log behind each, as `watch`."""
        queue, states, ulids = wanted.queue, wanted.states, wanted.ulids
        if not await self._queues.exists(queue):
            raise QueueNotFound(queue)
        watched = await self._jobs.enter(queue)
        watcher = QueueWatcher()
        watched.watch_many(watcher)
        named = set(ulids)
        told = Told(states, resumed=bool(began))
        whatever_state = replace(wanted, states=())

        def matches(job: Job) -> bool:
            ulid = job.job_id[ULID]
            return (
                (not named or ulid in named)
                and whatever_state.keeps(job, self._records)
                and told.admits(job)
            )

        try:
            at = began
            if began:
                async for job, at in self._replay(queue, began, full):
                    if job is not None and matches(job):
                        yield job, at
            else:
                page = await self._store.log_page(queue, "", 1)
                at = page.last_id if page else ""
                if not only_changes:
                    async for job in self._present(queue, states, ulids, full):
                        if matches(job):
                            yield job, ""
            yield CAUGHT_UP, at
            while True:
                if self._jobs.draining:
                    raise ServerDraining
                if watcher.lagged:
                    raise WatchLagged(
                        f"more than {MOST_WAITING} changed jobs waited for this watcher; watch"
                        " again"
                    )
                if watcher.has_missed():
                    since = at
                    async for job, at in self._catch_up(queue, since, full, told.live | named):
                        if job is not None and matches(job):
                            yield job, at
                    continue
                changed = watcher.take()
                if changed:
                    async for row in self._store.read_in_turn(queue, changed, full=full):
                        if matches(row):
                            # The cursor moves on only when all of what it covers has been told.
                            yield row, at
                    if not watcher.waiting:
                        at = max(at, watcher.log_id, key=_position_in_log)
                elif not await watcher.wait(self._jobs.bookmark_s):
                    yield None, at
        finally:
            watched.leave_many(watcher)

    async def _present(
        self, queue: str, states: Sequence[JobState], ulids: Sequence[str], full: bool
    ) -> AsyncIterator[Job]:
        """The jobs that are there: those named, or the live ones in the states that are wanted."""
        if ulids:
            async for job in self._store.read_in_turn(queue, ulids, full=full):
                yield job
            return
        for state in LIVE:
            if states and state not in states:
                continue
            token: PageToken | None = PageToken()
            while token is not None:
                at_once = LEASED_AT_ONCE if state.leased else AT_ONCE
                ids, token = await self._store.list_ids(queue, state, at_once, token)
                async for job in self._store.read_in_turn(queue, ids, full=full):
                    if job.state is state:
                        yield job

    async def _replay(
        self, queue: str, after: str, full: bool
    ) -> AsyncIterator[tuple[Job | None, str]]:
        """The jobs that changed behind an entry of the log, as they stand now; None behind those of
        a page, for the cursor alone.
        """
        while True:
            page = await self._store.log_page(queue, after, AT_ONCE)
            if page is None:
                text = f"the queue {queue} keeps no event log; watch without a cursor"
                raise CursorCompacted(text)
            if page.last_id == after:
                return
            ulids = [*dict.fromkeys(page.ulids)]
            async for job in self._store.read_in_turn(queue, ulids, full=full):
                yield job, after
            after = page.last_id
            yield None, after

    async def _catch_up(
        self, queue: str, at: str, full: bool, told: set[str]
    ) -> AsyncIterator[tuple[Job | None, str]]:
        """What may have been missed while events were: by the log, or by what is there."""
        if at:
            async for step in self._replay(queue, at, full):
                yield step
            return
        async for job in self._present(queue, (), (), full):
            told.discard(job.job_id[ULID])
            yield job, ""
        # What was told and is no longer live has ended meanwhile.
        if told:
            async for job in self._present(queue, (), sorted(told), full):
                yield job, ""


def _position_in_log(log_id: str) -> tuple[int, ...]:
    """Return what ids of entries are in order by; that of none comes first."""
    return tuple(map(int, log_id.split("-"))) if log_id else ()

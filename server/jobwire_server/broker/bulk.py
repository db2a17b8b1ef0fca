"""What is done to many jobs on somebody's word: redrives, cancellations, early forgetting.

The jobs of a filter are read page by page and acted on page by page, one call to the store for
each, so that a queue of millions costs no more memory than a page and holds nobody up. Each call
acts on a job only if it still is what was read; one that has moved on meanwhile is left alone.
Nothing is kept in the server: a call that breaks off has done what it told, and may be repeated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from jobwire_server.broker.alarms import Alarms
from jobwire_server.broker.matching_queues import matching_queues
from jobwire_server.domain.decisions.filters import JobFilter, Pace
from jobwire_server.domain.decisions.retention import retain_ended_ms
from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.errors import (
    AlreadyExists,
    JobNotFound,
    JobwireError,
    QueueNotFound,
    ServerDraining,
)
from jobwire_server.domain.ids import DEFAULT_QUEUE, ULID, job_id_of
from jobwire_server.domain.model import BulkProgress, Job, JobState, RecordFacts
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.records import RecordCodec
from jobwire_server.store.bulk import BulkStore, RedriveItem, Redriven, not_redrivable
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.reads import PageToken
from jobwire_server.store.settings_cache import QueueSettingsCache

FIRST_PAGE = 50
LONGEST_PAGE = 500
"""Jobs of one page, and so of one call to the store."""
SHORTEST_PAGE = 8
PAGE_BYTES = 4 << 20
"""What a page's records should come to; with large ones pages get shorter."""
SAMPLES = 100
"""Ids in one answer."""
TELL_S = 1.0
"""How often progress is told."""

REDRIVABLE = (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)
LIVE = tuple(state for state in JobState if not state.terminal)
TERMINAL = tuple(state for state in JobState if state.terminal)
_CANCELLABLE = (JobState.SCHEDULED, JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class _Action:
    """What is done to the jobs of a filter.

    Args:
        wanted: The jobs.
        able: The states in which something can be done to a job.
        apply: Does it to jobs of one queue as they were read; says of each whether it was changed.
        ended_by_ms: Leaves jobs out that ended after this moment, Unix ms; 0: none.
    """

    wanted: JobFilter
    able: tuple[JobState, ...]
    apply: Callable[[str, Sequence[Job]], Awaitable[Sequence[bool]]]
    ended_by_ms: int = 0

    def concerns(self, job: Job, records: RecordCodec) -> bool:
        """Return whether a job is meant."""
        if self.ended_by_ms and job.finished_at_ms > self.ended_by_ms:
            return False
        return self.wanted.keeps(job, records)


class Bulk:
    """Acts on jobs on somebody's word.

    Args:
        jobs: Where jobs are read and cancelled.
        store: Where they are put back and forgotten.
        queues: Which queues there are.
        alarms: Told when something is due.
        settings: Of the queues.
        options: Grace and retention.
        records: Reads what jobs are about.
    """

    def __init__(
        self,
        jobs: JobStore,
        store: BulkStore,
        queues: QueueStore,
        alarms: Alarms,
        settings: QueueSettingsCache,
        options: BrokerOptions,
        records: RecordCodec,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._queues = queues
        self._alarms = alarms
        self._settings = settings
        self._options = options
        self._records = records
        self._draining = False

    def drain(self) -> None:
        """End every action behind the page that it is at, with ServerDraining."""
        self._draining = True

    async def retry_one(
        self, queue: str, ulid: str, reason: str, delay_ms: int, request_id: str = ""
    ) -> Job:
        """Put a job back after its end; return it as it stands then.

        A job that is live because of an earlier redrive stays as it is, and so does one whose
        latest redrive was this very request.

        Args:
            queue: Its queue.
            ulid: The job.
            reason: For people.
            delay_ms: Not before this long from now; 0: at once.
            request_id: Names the request; '': it is a new one.

        Raises:
            JobNotFound: There is none.
            WrongState: It has succeeded, or is live and was never redriven.
            AlreadyExists: The id was used for its latest redrive, with another reason or delay.
        """
        job = await self._read(queue, ulid)
        if _is_repeat(job, reason, delay_ms, request_id):
            return job
        if not job.state.terminal:
            if job.redrive is None:
                raise not_redrivable(job.job_id, job.state)
            return job
        item = redrive_item(job, self._records.facts(job.record), reason, delay_ms=delay_ms)
        item = item._replace(request_id=request_id)
        (outcome,) = await self._store.redrive(queue, [item])
        if isinstance(outcome, JobwireError):
            raise outcome
        if delay_ms:
            self._alarms.due_in(queue, delay_ms)
        job = await self._read(queue, ulid)
        if not outcome.now:
            # Somebody else was faster, perhaps under the same id.
            _is_repeat(job, reason, delay_ms, request_id)
        return job

    async def _read(self, queue: str, ulid: str) -> Job:
        (job,) = await self._jobs.read(queue, [ulid], full=False)
        if job is None:
            raise JobNotFound(job_id_of(queue, ulid))
        return job

    async def retry(
        self,
        wanted: JobFilter,
        reason: str,
        *,
        dry_run: bool,
        max_jobs: int,
        per_second: float = 0.0,
    ) -> AsyncIterator[BulkProgress]:
        """Redrive all jobs of a filter; yield how far it is.

        Jobs that end while this goes on are left alone, or one that fails at once would be redriven
        for ever.

        Args:
            wanted: The jobs; without states the FAILED ones.
            reason: For people; kept with each job.
            dry_run: True: counts, and changes nothing.
            max_jobs: The most jobs to redrive; 0: all.
            per_second: The most jobs that become ready in a second: the others are SCHEDULED one
                behind the other, so that the rest needs no server; 0: no cap.

        Raises:
            QueueNotFound: No job was ever submitted to the queue.
            ServerDraining: The server shuts down; what was done stays done.
        """
        begun_ms, begun = await self._begin(wanted), monotonic()
        pace = Pace(per_second, begun_ms) if per_second else None

        async def redrive(queue: str, jobs: Sequence[Job]) -> list[bool]:
            now_ms = begun_ms + int((monotonic() - begun) * 1000)
            if pace is not None:
                pace.catch_up(now_ms)
            items = [
                redrive_item(
                    job, self._records.facts(job.record), reason, due_ms=pace.take() if pace else 0
                )
                for job in jobs
            ]
            outcomes = await self._store.redrive(queue, items)
            if pace is not None:
                self._alarms.due_in(queue, max(0, items[0].due_ms - now_ms))
            return [isinstance(outcome, Redriven) and outcome.now for outcome in outcomes]

        action = _Action(wanted, REDRIVABLE, redrive, begun_ms)
        states = wanted.states or (JobState.FAILED,)
        async for progress in self._act(action, states, dry_run, max_jobs):
            yield progress

    async def cancel(
        self,
        wanted: JobFilter,
        reason: str,
        *,
        dry_run: bool,
        max_jobs: int,
    ) -> AsyncIterator[BulkProgress]:
        """Cancel all jobs of a filter; yield how far it is.

        Without states these are the live ones. Otherwise as `retry`.
        """
        options = self._options
        await self._begin(wanted)
        only = [state for state in wanted.states or LIVE if state in _CANCELLABLE]

        async def end(queue: str, jobs: Sequence[Job]) -> list[bool]:
            outcomes = await self._jobs.cancel(
                queue,
                [(job.job_id[ULID], reason) for job in jobs],
                options.cancel_grace_ms,
                retain_ended_ms(await self._settings.get(queue), options),
                only,
            )
            if JobState.CANCELLING in outcomes:
                self._alarms.due_in(queue, options.cancel_grace_ms)
            return [isinstance(outcome, JobState) for outcome in outcomes]

        action = _Action(wanted, _CANCELLABLE, end)
        async for progress in self._act(action, wanted.states or LIVE, dry_run, max_jobs):
            yield progress

    async def purge(
        self, wanted: JobFilter, *, dry_run: bool, max_jobs: int
    ) -> AsyncIterator[BulkProgress]:
        """Forget all jobs of a filter that have ended; yield how far it is.

        Without states these are the terminal ones. Otherwise as `retry`.
        """
        await self._begin(wanted)

        async def forget(queue: str, jobs: Sequence[Job]) -> list[bool]:
            seen = [(job.job_id[ULID], job.revision) for job in jobs]
            return await self._store.forget(queue, seen)

        action = _Action(wanted, TERMINAL, forget)
        async for progress in self._act(action, wanted.states or TERMINAL, dry_run, max_jobs):
            yield progress

    async def _begin(self, wanted: JobFilter) -> int:
        """Return the store's time, if there is such a queue, or it may be any of a pattern."""
        if self._draining:
            raise ServerDraining
        if wanted.is_pattern:
            # Of any queue, there or not: of each it is the time of the store.
            return await self._jobs.now_ms(DEFAULT_QUEUE)
        if not await self._queues.exists(wanted.queue):
            raise QueueNotFound(wanted.queue)
        return await self._jobs.now_ms(wanted.queue)

    async def _act(
        self,
        action: _Action,
        states: Sequence[JobState],
        dry_run: bool,
        max_jobs: int,
    ) -> AsyncIterator[BulkProgress]:
        """Act on the jobs of a filter that are in one of the states."""
        matched = changed = skipped = 0
        samples: list[str] = []
        told = monotonic()
        # What can only be counted comes first, or jobs that are changed would be met there again.
        order = sorted(dict.fromkeys(states), key=lambda state: state in action.able)
        async for queue, page in self._pages(action.wanted, order):
            jobs = [job for job in page if action.concerns(job, self._records)]
            able = [job for job in jobs if job.state in action.able]
            # Where the most is reached, what lies behind it was not looked at.
            if max_jobs and len(able) > max_jobs - changed:
                able = able[: max_jobs - changed]
                jobs = jobs[: jobs.index(able[-1]) + 1]
            done = [True] * len(able) if dry_run or not able else await action.apply(queue, able)
            ids = [job.job_id for job, it in zip(able, done, strict=True) if it]
            matched += len(jobs)
            changed += len(ids)
            skipped += len(jobs) - len(ids)
            samples += ids[: SAMPLES - len(samples)]
            if max_jobs and changed >= max_jobs:
                break
            if monotonic() - told >= TELL_S:
                yield BulkProgress(matched, changed, skipped, tuple(samples))
                samples, told = [], monotonic()
            if self._draining:
                raise ServerDraining
        yield BulkProgress(matched, changed, skipped, tuple(samples), done=True)

    async def _pages(
        self, wanted: JobFilter, states: Sequence[JobState]
    ) -> AsyncIterator[tuple[str, list[Job]]]:
        """Yield a queue and jobs of it that are in one of the states, a page at a time; an empty
        page now and then where there is much to look at.
        """
        async for chunk in matching_queues(self._queues, wanted):
            for queue, counts in chunk:
                filled = [state for state in states if counts is None or counts.get(state)]
                if filled:
                    async for page in self._pages_of(wanted.in_queue(queue), filled):
                        yield queue, page
            yield chunk[-1][0] if chunk else "", []

    async def _pages_of(
        self, wanted: JobFilter, states: Sequence[JobState]
    ) -> AsyncIterator[list[Job]]:
        """Yield jobs of one queue that are in one of the states, a page at a time."""
        queue = wanted.queue
        if wanted.ulids:
            ulids = list(dict.fromkeys(wanted.ulids))
            at = 0
            while at < len(ulids):
                jobs = await self._jobs.read_some(
                    queue, ulids[at : at + FIRST_PAGE], full=False, most_bytes=PAGE_BYTES
                )
                at += len(jobs)
                yield [job for job in jobs if job is not None and job.state in states]
            return
        size = FIRST_PAGE
        for state in states:
            token: PageToken | None = PageToken()
            while token is not None:
                ids, token = await self._jobs.list_ids(queue, state, size, token)
                # An entry that a job left behind may stand beside its present one.
                once = [*dict.fromkeys(ids)]
                read = await self._jobs.read(queue, once, full=False) if once else []
                page = [job for job in read if job is not None]
                yield [job for job in page if job.state is state]
                size = _next_size(size, page)


def _next_size(size: int, jobs: Sequence[Job]) -> int:
    """Return how many jobs the next page should have, by the size of the last one's records."""
    if not jobs:
        return size
    mean = sum(len(job.record) for job in jobs) // len(jobs) + 1
    # At most four times as many as before, because what comes next may be larger.
    return max(SHORTEST_PAGE, min(LONGEST_PAGE, 4 * size, PAGE_BYTES // mean))


def redrive_item(
    job: Job, facts: RecordFacts, reason: str, *, due_ms: int = 0, delay_ms: int = 0
) -> RedriveItem:
    """Return the redrive of a job as it was read."""
    return RedriveItem(
        ulid=job.job_id[ULID],
        route_id=route_of(facts.operation, facts.requirements).id,
        priority=facts.priority if job.priority is None else job.priority,
        number=job.redrive.number if job.redrive else 0,
        reason=reason,
        due_ms=due_ms,
        delay_ms=delay_ms,
    )


def _is_repeat(job: Job, reason: str, delay_ms: int, request_id: str) -> bool:
    """Return whether a request is the one that redrove a job last.

    Raises:
        AlreadyExists: It has that one's id, and other content.
    """
    latest = job.redrive
    if not request_id or latest is None or latest.request_id != request_id:
        return False
    if reason != latest.reason or latest.delay_ms not in (None, delay_ms):
        raise AlreadyExists(
            f"{job.job_id} was redriven under the request_id {request_id} with another reason or"
            " delay; give the new request an id of its own",
            metadata={"job_id": job.job_id, "job_request_id": request_id},
        )
    return True

"""Lanes: for each queue and kind of call, what waits for the store and goes there together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jobwire_server.domain.decisions.retention import retain_ended_ms, retain_succeeded_ms
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import Accepted, Completed, Job, JobState, NewJob, Renewal
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.attempts import EndToWrite, ReportToWrite, SuccessToWrite
from jobwire_server.store.group_commit import Backlog, GroupCommit
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.workers.dispatchers import Dispatchers

READ_ITEMS = 100
"""A job may come with megabytes of payload and result, so fewer of them share a read."""


SubmitLane = GroupCommit[NewJob, Accepted | JobwireError]


def _job_bytes(job: NewJob) -> int:
    return len(job.record)


def _result_bytes(success: SuccessToWrite) -> int:
    return len(success.result)


def _report_bytes(report: ReportToWrite) -> int:
    size = len(report.progress) + len(report.checkpoint or b"")
    if report.output is not None:
        size += sum(len(piece.content) for piece in report.output.pieces)
    return size


class Lanes:
    """What waits for the store about the jobs of one queue, by kind of call."""

    __slots__ = ("cancel", "end", "known", "read", "read_basic", "report", "succeed")

    def __init__(
        self,
        queue: str,
        store: JobStore,
        options: BrokerOptions,
        backlog: Backlog,
        settings: QueueSettingsCache,
    ) -> None:
        linger_s = options.max_linger_ms / 1000

        async def succeed(items: Sequence[SuccessToWrite]) -> Sequence[Completed | JobwireError]:
            chosen = await settings.get(queue)
            return await store.succeed(queue, items, retain_succeeded_ms(chosen, options))

        async def report(items: Sequence[ReportToWrite]) -> Sequence[Renewal]:
            return await store.report(queue, items, options.limits)

        async def end(
            items: Sequence[EndToWrite],
        ) -> Sequence[Completed | JobwireError | None]:
            chosen = await settings.get(queue)
            return await store.end_attempts(queue, items, retain_ended_ms(chosen, options))

        async def cancel(items: Sequence[tuple[str, str]]) -> Sequence[JobState | JobwireError]:
            chosen = await settings.get(queue)
            return await store.cancel(
                queue, items, options.cancel_grace_ms, retain_ended_ms(chosen, options)
            )

        self.known: GroupCommit[NewJob, Accepted | JobwireError | None] = GroupCommit(
            partial(store.known, queue), backlog, max_items=READ_ITEMS, with_caller=True
        )
        self.succeed: GroupCommit[SuccessToWrite, Completed | JobwireError] = GroupCommit(
            succeed, backlog, weigh=_result_bytes, linger_s=linger_s
        )
        self.end: GroupCommit[EndToWrite, Completed | JobwireError | None] = GroupCommit(
            end, backlog
        )
        self.report: GroupCommit[ReportToWrite, Renewal] = GroupCommit(
            report, backlog, weigh=_report_bytes, linger_s=linger_s
        )
        self.cancel: GroupCommit[tuple[str, str], JobState | JobwireError] = GroupCommit(
            cancel, backlog
        )
        self.read: GroupCommit[str, Job | None] = GroupCommit(
            partial(store.read, queue, full=True), backlog, max_items=READ_ITEMS, with_caller=True
        )
        self.read_basic: GroupCommit[str, Job | None] = GroupCommit(
            partial(store.read, queue, full=False), backlog, max_items=READ_ITEMS, with_caller=True
        )


class QueueLanes:
    """The lanes of all queues.

    Args:
        store: Where jobs are.
        options: How long calls are held, and jobs kept.
        backlog: What all lanes share.
        settings: Of the queues.
    """

    def __init__(
        self,
        store: JobStore,
        options: BrokerOptions,
        backlog: Backlog,
        settings: QueueSettingsCache,
    ) -> None:
        self._store = store
        self._options = options
        self._backlog = backlog
        self._settings = settings
        self._kept: dict[str, Lanes] = {}

    def of(self, queue: str) -> Lanes:
        """Return the lanes of a queue, whether or not it exists."""
        # Not kept where it is not known to exist: names that somebody made up must not fill the
        # memory.
        return self._kept.get(queue) or self._make(queue)

    def keep(self, queue: str) -> None:
        """Keep the lanes of a queue, which exists."""
        if queue not in self._kept:
            self._kept[queue] = self._make(queue)

    def drop(self, queue: str) -> None:
        """Keep the lanes of a queue no longer."""
        self._kept.pop(queue, None)

    def _make(self, queue: str) -> Lanes:
        return Lanes(queue, self._store, self._options, self._backlog, self._settings)


def submit_lane(
    queue: str,
    store: JobStore,
    options: BrokerOptions,
    backlog: Backlog,
    settings: QueueSettingsCache,
    dispatchers: Dispatchers,
) -> SubmitLane:
    """Return what gathers the submissions of a queue; few jobs go to workers that wait here."""

    async def submit(items: Sequence[NewJob]) -> Sequence[Accepted | JobwireError]:
        chosen = await settings.get(queue)
        if chosen.default_priority:
            items = with_priority(items, chosen.default_priority)
        retention_ms = retain_ended_ms(chosen, options)
        limits = chosen.max_pending_jobs, chosen.max_live_bytes
        hand_over = dispatchers.hand_over(queue, items)
        if hand_over is not None:
            return await hand_over(retention_ms, limits)
        return await store.submit(queue, items, retention_ms, *limits)

    return GroupCommit(
        submit,
        backlog,
        weigh=_job_bytes,
        linger_s=options.max_linger_ms / 1000,
        # Whoever gave up does not know whether there is a job, and submits it again.
        with_caller=True,
    )


def with_priority(jobs: Sequence[NewJob], priority: int) -> list[NewJob]:
    """Return the jobs of a queue with its default priority for those that name none."""
    return [
        job if job.priority or job.keeps_zero else job._replace(queue_priority=priority)
        for job in jobs
    ]

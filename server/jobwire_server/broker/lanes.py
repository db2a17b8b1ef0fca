"""The lanes of one queue: a group commit for each kind of call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from jobwire_server.domain.decisions.retention import retain_ended_ms, retain_succeeded_ms
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import Accepted, Completed, Job, JobState, NewJob, Renewal
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.group_commit import Backlog, GroupCommit
from jobwire_server.store.jobs import AttemptEnd, JobStore, Report, Success
from jobwire_server.store.settings_cache import QueueSettingsCache

Expect = Callable[[str, Sequence[NewJob]], None]
"""Told of the jobs that are on their way to a queue."""

READ_ITEMS = 100
"""A job may come with megabytes of payload and result, so fewer of them share a read."""


def _job_bytes(job: NewJob) -> int:
    return len(job.record)


def _result_bytes(success: Success) -> int:
    return len(success.result)


def _report_bytes(report: Report) -> int:
    size = len(report.progress) + len(report.checkpoint or b"")
    if report.output is not None:
        size += sum(len(piece.content) for piece in report.output.pieces)
    return size


class Lanes:
    """What waits for the store about one queue, by kind of call."""

    __slots__ = ("cancel", "end", "known", "read", "read_basic", "report", "submit", "succeed")

    def __init__(
        self,
        queue: str,
        store: JobStore,
        options: BrokerOptions,
        backlog: Backlog,
        expect: Expect,
        settings: QueueSettingsCache,
    ) -> None:
        loop = asyncio.get_running_loop()
        linger_s = options.max_linger_ms / 1000

        async def submit(items: Sequence[NewJob]) -> Sequence[Accepted | JobwireError]:
            # In the loop's next turn, when the call is on its way. For one that is alone the notice
            # would be slow; many jobs keep the claims busy as it is.
            if len(items) == 1:
                loop.call_soon(expect, queue, items)
            chosen = await settings.get(queue)
            return await store.submit(
                queue,
                items,
                retain_ended_ms(chosen, options),
                chosen.max_pending_jobs,
                chosen.max_live_bytes,
            )

        async def succeed(items: Sequence[Success]) -> Sequence[Completed | JobwireError]:
            chosen = await settings.get(queue)
            return await store.succeed(queue, items, retain_succeeded_ms(chosen, options))

        async def report(items: Sequence[Report]) -> Sequence[Renewal]:
            return await store.report(queue, items, options.limits)

        async def end(
            items: Sequence[AttemptEnd],
        ) -> Sequence[Completed | JobwireError | None]:
            chosen = await settings.get(queue)
            return await store.end_attempts(queue, items, retain_ended_ms(chosen, options))

        async def cancel(items: Sequence[tuple[str, str]]) -> Sequence[JobState | JobwireError]:
            chosen = await settings.get(queue)
            return await store.cancel(
                queue, items, options.cancel_grace_ms, retain_ended_ms(chosen, options)
            )

        self.submit: GroupCommit[NewJob, Accepted | JobwireError] = GroupCommit(
            submit, backlog, weigh=_job_bytes, linger_s=linger_s
        )
        self.known: GroupCommit[NewJob, Accepted | JobwireError | None] = GroupCommit(
            partial(store.known, queue), backlog, max_items=READ_ITEMS
        )
        self.succeed: GroupCommit[Success, Completed | JobwireError] = GroupCommit(
            succeed, backlog, weigh=_result_bytes, linger_s=linger_s
        )
        self.end: GroupCommit[AttemptEnd, Completed | JobwireError | None] = GroupCommit(
            end, backlog
        )
        self.report: GroupCommit[Report, Renewal] = GroupCommit(
            report, backlog, weigh=_report_bytes, linger_s=linger_s
        )
        self.cancel: GroupCommit[tuple[str, str], JobState | JobwireError] = GroupCommit(
            cancel, backlog
        )
        self.read: GroupCommit[str, Job | None] = GroupCommit(
            partial(store.read, queue, full=True), backlog, max_items=READ_ITEMS
        )
        self.read_basic: GroupCommit[str, Job | None] = GroupCommit(
            partial(store.read, queue, full=False), backlog, max_items=READ_ITEMS
        )

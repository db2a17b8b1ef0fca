"""Actions on many jobs: redrive, cancel, purge."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from copy import deepcopy
from dataclasses import replace
from typing import Any, Unpack

from jobwire._async.calls import AsyncCalls, NextCall
from jobwire._repeat import Deadline
from jobwire._requests import FilterOptions, job_filter
from jobwire.bulk import BulkProgress
from jobwire.v1.admin_service_pb2 import PurgeJobsRequest
from jobwire.v1.job_service_pb2 import CancelJobsRequest, RetryJobsRequest


class AsyncBulkAction:
    """An action on many jobs, which begins when it is iterated over or waited for.

    Iterating yields progress about once a second. Leaving the iteration early stops the action;
    what was changed stays changed. If a call is cut off, another one continues: jobs that were
    changed no longer match, and are added to the counts.

    Args:
        calls: The way to the servers.
        method: The name of the method and of its service's stub.
        request: With the filter.
        first_s: How long to try until the first answer comes, in seconds.
        reconnect_s: How long to keep trying while no server answers, in seconds.
    """

    def __init__(
        self,
        calls: AsyncCalls,
        method: tuple[str, str],
        request: RetryJobsRequest | CancelJobsRequest | PurgeJobsRequest,
        first_s: float | None,
        reconnect_s: float | None,
    ) -> None:
        self._calls = calls
        self._service, self._name = method
        self._request = request
        self._first_s = first_s
        self._reconnect_s = reconnect_s

    async def wait(self) -> BulkProgress:
        """Run the action to its end and return the final progress."""
        events = self._follow()
        async with aclosing(events):
            async for progress in events:
                last: BulkProgress = progress
        return last

    def __aiter__(self) -> AsyncGenerator[BulkProgress]:
        return self._follow()

    async def _follow(self) -> AsyncGenerator[BulkProgress]:
        last = BulkProgress(0, 0, 0, (), done=False)
        before = 0
        # The action may be iterated over again.
        request = deepcopy(self._request)

        def next_call() -> NextCall:
            nonlocal before
            if not request.dry_run:
                before = last.changed
                if self._request.max_jobs:
                    request.max_jobs = self._request.max_jobs - before
                    if not request.max_jobs:
                        raise _Enough
            # A limit would cut it off and start it over, so that a long count never ends.
            return getattr(getattr(self._calls, self._service), self._name), request, math.inf

        answers: AsyncGenerator[Any] = self._calls.stream(
            next_call,
            deadline=Deadline(None),
            late="",
            first_s=self._first_s,
            reconnect_s=self._reconnect_s,
        )
        try:
            async with aclosing(answers):
                async for answer in answers:
                    last = BulkProgress.from_proto(answer.progress, before)
                    yield last
                    if last.done:
                        return
        except _Enough:
            yield replace(last, done=True)


class _Enough(Exception):
    """As many jobs as allowed were changed before the call was cut off."""


class AsyncBulkMethods:
    """Actions on many jobs; see `AsyncClient`."""

    _calls: AsyncCalls
    _timeout_s: float | None
    _reconnect_s: float | None

    def retry_jobs(
        self,
        queue: str,
        *,
        reason: str = "",
        dry_run: bool = False,
        max_jobs: int = 0,
        max_per_second: float = 0.0,
        **which: Unpack[FilterOptions],
    ) -> AsyncBulkAction:
        """Redrive the jobs of a queue that match, in the order in which they were submitted.

            client.retry_jobs("images", failure_type="Timeout", max_per_second=50).wait()

        Args:
            queue: The queue, or a pattern of queues, as for `list_jobs`; `*` for all.
            reason: For people; kept with each job. At most 512 bytes.
            dry_run: True: count, and change nothing.
            max_jobs: The most jobs to redrive; 0: all.
            max_per_second: The most jobs that become ready in a second; the others are SCHEDULED
                one after the other. 0.01 to 100000; 0: no cap.
            which: `states` (without them: FAILED), `operation`, `labels`, `failure_type`,
                `failure_origin`, `submitted_after`, `submitted_before`, `finished_after`,
                `finished_before`, `job_ids`.

        Raises:
            ValueError: A moment has no time zone.
            QueueNotFound: When it begins: there is no such queue.
        """
        request = RetryJobsRequest(
            filter=job_filter(queue, which),
            reason=reason,
            dry_run=dry_run,
            max_jobs=max_jobs,
            max_per_second=max_per_second,
        )
        return self._bulk(("jobs", "RetryJobs"), request)

    def cancel_jobs(
        self,
        queue: str,
        *,
        reason: str = "",
        dry_run: bool = False,
        max_jobs: int = 0,
        **which: Unpack[FilterOptions],
    ) -> AsyncBulkAction:
        """Cancel the jobs of a queue that match, each as `cancel` does.

        Args:
            queue: The queue, or a pattern of queues, as for `list_jobs`; `*` for all.
            reason: For people; kept with each job. At most 512 bytes.
            dry_run: True: count, and change nothing.
            max_jobs: The most jobs to cancel; 0: all.
            which: As for `retry_jobs`; without `states`: all live ones.

        Raises:
            ValueError: A moment has no time zone.
            QueueNotFound: When it begins: there is no such queue.
        """
        request = CancelJobsRequest(
            filter=job_filter(queue, which), reason=reason, dry_run=dry_run, max_jobs=max_jobs
        )
        return self._bulk(("jobs", "CancelJobs"), request)

    def purge_jobs(
        self,
        queue: str,
        *,
        dry_run: bool = False,
        max_jobs: int = 0,
        **which: Unpack[FilterOptions],
    ) -> AsyncBulkAction:
        """Purge the ended jobs of a queue that match, with all that is kept of them.

        Args:
            queue: The queue, or a pattern of queues, as for `list_jobs`; `*` for all.
            dry_run: True: count, and change nothing.
            max_jobs: The most jobs to purge; 0: all.
            which: As for `retry_jobs`; without `states`: all terminal ones.

        Raises:
            ValueError: A moment has no time zone.
            InvalidRequest: When it begins: a live state is among `states`.
            QueueNotFound: When it begins: there is no such queue.
        """
        request = PurgeJobsRequest(
            filter=job_filter(queue, which), dry_run=dry_run, max_jobs=max_jobs
        )
        return self._bulk(("admin", "PurgeJobs"), request)

    def _bulk(
        self,
        method: tuple[str, str],
        request: RetryJobsRequest | CancelJobsRequest | PurgeJobsRequest,
    ) -> AsyncBulkAction:
        return AsyncBulkAction(self._calls, method, request, self._timeout_s, self._reconnect_s)

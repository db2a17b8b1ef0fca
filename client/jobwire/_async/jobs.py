"""The part of the client for jobs that were submitted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from typing import Any, Literal, Unpack
from uuid import uuid4

from jobwire._async.calls import AsyncCalls
from jobwire._async.handle import AsyncJobHandle
from jobwire._async.many import AsyncQueueWatch
from jobwire._async.watching import AsyncJobWatch, Wish
from jobwire._convert import Seconds, Timeout, seconds_or_none, to_duration
from jobwire._requests import FilterOptions, job_filter
from jobwire.models import Attempt, Job, JobState
from jobwire.v1 import job_service_pb2 as jobs_pb2
from jobwire.v1.job_pb2 import JOB_VIEW_BASIC, JOB_VIEW_FULL, JobView
from jobwire.v1.job_service_pb2 import WATCH_CONTENT_STATES

_ORDERS = {
    "state": jobs_pb2.JOB_ORDER_STATE,
    "state_reverse": jobs_pb2.JOB_ORDER_STATE_REVERSE,
}


class AsyncJobMethods:
    """Methods for jobs; see `AsyncClient`."""

    _calls: AsyncCalls
    _timeout_s: float | None
    _reconnect_s: float | None

    def job(self, job_id: str) -> AsyncJobHandle:
        """Return a handle for a job by its id, without a call."""
        return AsyncJobHandle(self, job_id)

    async def get(self, job_id: str, *, full: bool = True) -> Job:
        """Return a job as it stands.

        Args:
            job_id: Of any queue.
            full: False leaves out payload, result, attempts and stack traces.
        """
        request = jobs_pb2.GetJobRequest(job_id=job_id, view=_view(full))
        answer = await self._calls.unary(self._calls.jobs.GetJob, request, self._timeout_s)
        return Job.from_proto(answer.job)

    async def list_jobs(
        self,
        queue: str = "default",
        *,
        order: Literal["state", "state_reverse"] = "state",
        page_size: int = 100,
        full: bool = False,
        **which: Unpack[FilterOptions],
    ) -> AsyncIterator[Job]:
        """Yield the jobs that match, page after page as they are asked for.

            client.list_jobs("billing-*", states=[JobState.FAILED], order="state_reverse")

        Args:
            queue: The queue, or a pattern: `*` stands for any number of characters, also none, at
                most 4 times. Jobs of several queues come in the order of the queues' names.
            order: `"state"`: state by state, and within a state oldest first for live jobs and
                soonest forgotten first for ended ones. `"state_reverse"`: the other way round
                within each state.
            page_size: How many to read in one call. 1 to 1000; an answer ends early
                where so many would be more than 3 MiB.
            full: True brings payload, result, attempts and stack traces too.
            which: `states` (in this order; without them: all, live ones first), `operation`,
                `labels`, `failure_type`, `failure_origin`, `submitted_after`, `submitted_before`,
                `finished_after`, `finished_before`, `job_ids`.

        Raises:
            ValueError: A moment has no time zone.
            QueueNotFound: There is no such queue. A pattern that fits none yields nothing.
        """
        request = jobs_pb2.ListJobsRequest(
            filter=job_filter(queue, which),
            page_size=page_size,
            view=_view(full),
            order_by=_ORDERS[order],
        )
        while True:
            answer = await self._calls.unary(self._calls.jobs.ListJobs, request, self._timeout_s)
            for proto in answer.jobs:
                yield Job.from_proto(proto)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    async def list_attempts(self, job_id: str, *, page_size: int = 50) -> AsyncIterator[Attempt]:
        """Yield the attempts of a job, newest first, page after page as they are asked for.

        These are the latest 100 that have ended, and the one that runs; `Job.attempts` holds no
        more of them than fit into an answer.

        Args:
            job_id: Of any queue.
            page_size: How many to read in one call at most. 1 to 1000.
        """
        request = jobs_pb2.ListAttemptsRequest(job_id=job_id, page_size=page_size)
        while True:
            answer = await self._calls.unary(
                self._calls.jobs.ListAttempts, request, self._timeout_s
            )
            for proto in answer.attempts:
                yield Attempt.from_proto(proto)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    def watch(
        self, job_id: str, *, timeout: Timeout = None, full: bool = True
    ) -> AsyncJobWatch[Job]:
        """Yield a job as it stands and again after every change, until it has ended.

        It reconnects by itself and shows no state twice. `AsyncJobHandle.watch` brings its output
        as well.

        Args:
            job_id: Of any queue.
            timeout: For the whole watch, as seconds or timedelta; None: as long as the job takes.
            full: False leaves out payload, result, attempts and stack traces.

        Raises:
            DeadlineExceeded: The job did not end within `timeout`.
        """
        return self._watch_job(job_id, WATCH_CONTENT_STATES, full=full, timeout=timeout)

    def _watch_job(
        self,
        job_id: str,
        content: jobs_pb2.WatchContent.ValueType,
        *,
        full: bool,
        timeout: Timeout,
        **wishes: Any,
    ) -> AsyncJobWatch[Any]:
        wish = Wish(
            job_id=job_id,
            view=_view(full),
            content=content,
            timeout_s=seconds_or_none("timeout", timeout),
            reconnect_s=self._reconnect_s,
            **wishes,
        )
        return AsyncJobWatch(self._calls, wish)

    def watch_jobs(
        self,
        queue: str = "default",
        *,
        operation: str = "",
        states: Iterable[JobState] = (),
        labels: Mapping[str, str] | None = None,
        job_ids: Iterable[str] = (),
        full: bool = False,
        only_changes: bool = False,
    ) -> AsyncGenerator[Job]:
        """Yield the jobs of a queue that match, as they stand, and each again when it changes.

        A job that leaves `states` is yielded once more. It continues until the caller leaves it, or
        until all of `job_ids` have ended. It reconnects by itself. If the queue keeps an event log
        (`configure_queue`) that reaches back far enough, no job is missed by that; otherwise it
        lists the jobs again, and jobs that came and ended meanwhile are missed unless they are
        named.

        Args:
            queue: The queue.
            operation: Only jobs of it; empty: all.
            states: Only jobs in these; empty: all.
            labels: Only jobs with all of these labels.
            job_ids: Only these jobs, at most 1000. Those that have ended are told too.
            full: True brings payload, result, attempts and stack traces too.
            only_changes: True leaves out the jobs as they stand at the beginning.
        """
        request = jobs_pb2.WatchJobsRequest(
            filter=jobs_pb2.JobFilter(
                queue=queue,
                operation=operation,
                states=[state.to_proto() for state in states],
                labels=labels,
                job_ids=job_ids,
            ),
            view=_view(full),
            only_changes=only_changes,
        )
        watch = AsyncQueueWatch(self._calls, request, self._timeout_s, self._reconnect_s)
        return watch.events()

    async def cancel(self, job_id: str, reason: str = "") -> Job:
        """Cancel a job and return it: CANCELLED, or CANCELLING while it still runs.

        Args:
            job_id: Of any queue.
            reason: For people; kept with the job. At most 512 bytes.

        Raises:
            WrongState: The job has ended otherwise.
        """
        request = jobs_pb2.CancelJobRequest(job_id=job_id, reason=reason)
        answer = await self._calls.unary(self._calls.jobs.CancelJob, request, self._timeout_s)
        return Job.from_proto(answer.job)

    async def retry_job(
        self,
        job_id: str,
        reason: str = "",
        *,
        delay: Seconds | None = None,
        request_id: str | None = None,
    ) -> Job:
        """Put a FAILED, CANCELLED or EXPIRED job back to PENDING (a redrive) and return it.

        Its failures, crashes and interruptions count from 0 again; its attempts, output and
        checkpoint stay. Its `expires_at` and `deadline` do not count any more.

        Args:
            job_id: Of any queue.
            reason: For people; kept with the job. At most 512 bytes.
            delay: Not before this long from now, as seconds or timedelta. 0 to 10 years.
            request_id: Makes it safe to call again from another process: the same id changes
                nothing more, also after the job has ended again, until another redrive. None: a new
                one, under which this call is repeated after a lost answer. 1 to 64 letters, digits
                and `. _ : -`.

        Raises:
            WrongState: It has succeeded, or is live and was never redriven.
            UniqueKeyTaken: Another job holds its unique key by now.
            AlreadyExists: Its latest redrive had this `request_id`, and another reason or delay.
        """
        request = jobs_pb2.RetryJobRequest(
            job_id=job_id,
            reason=reason,
            delay=None if delay is None else to_duration(delay, "delay"),
            request_id=uuid4().hex if request_id is None else request_id,
        )
        answer = await self._calls.unary(self._calls.jobs.RetryJob, request, self._timeout_s)
        return Job.from_proto(answer.job)


def _view(full: bool) -> JobView.ValueType:
    return JOB_VIEW_FULL if full else JOB_VIEW_BASIC

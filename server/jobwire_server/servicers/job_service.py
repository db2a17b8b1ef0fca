"""JobService: producers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from jobwire.v1 import job_pb2, job_service_pb2
from jobwire_server.broker.router import Router
from jobwire_server.domain.decisions.filters import JobFilter
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.ids import ULID_LENGTH
from jobwire_server.domain.model import Accepted, Job, NewJob
from jobwire_server.domain.options import Limits
from jobwire_server.servicers import bulk, convert, wire
from jobwire_server.servicers.batches import Batches, accepted, known_or_refused, response
from jobwire_server.servicers.checks import TEN_YEARS_MS, Checker
from jobwire_server.servicers.submission import NotNow, Submissions
from jobwire_server.servicers.watching import answers, wish_of

MAX_REASON_BYTES = 512
_LOG_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


class JobService:
    """Converts, asks the router, and converts back."""

    def __init__(self, router: Router, limits: Limits) -> None:
        self._router = router
        self._limits = limits
        self._submissions = Submissions(limits, router.clock.now_ms, router.new_ulid)
        self._batches = Batches(router, self._submissions, limits)

    async def SubmitJob(self, request: job_service_pb2.SubmitJobRequest, context: object) -> Any:
        """Accepts one job."""
        try:
            job = self._submissions.new_job(request)
        except NotNow as late:
            return response(await known_or_refused(self._router, late), late.job)
        answer = (await self._router.submit(job.queue, (job,)))[0]
        if type(answer) is Accepted and answer.existing_record is None and answer.state:
            return wire.accepted(answer.job_id, answer.state, in_batch=False)
        return response(answer, job)

    async def SubmitJobs(self, request: job_service_pb2.SubmitJobsRequest, context: object) -> Any:
        """Accepts a batch, item by item."""
        return wire.SubmitJobsResponse(results=await self._batches.submit(request))

    async def GetJob(self, request: job_service_pb2.GetJobRequest, context: object) -> Any:
        """Returns one job."""
        queue, ulid = _job_id(request.job_id)
        full = request.view != job_pb2.JOB_VIEW_BASIC
        job = await self._router.get_job(queue, ulid, full=full)
        return wire.GetJobResponse(job=convert.job_to_wire(job, full=full))

    async def ListJobs(self, request: job_service_pb2.ListJobsRequest, context: object) -> Any:
        """Lists the jobs of a queue, page by page."""
        checker = Checker()
        queue = checker.queue("queue", request.queue)
        page_size = checker.count("page_size", request.page_size, 1, 1000, 50)
        if request.operation:
            checker.operation("operation", request.operation)
        states = bulk.states_of(checker, "states", request.states)
        checker.labels("labels", request.labels)
        checker.text("failure_type", request.failure_type, bulk.MAX_TYPE_BYTES)
        checker.raise_if_any()
        full = request.view == job_pb2.JOB_VIEW_FULL
        wanted = JobFilter(
            queue,
            operation=request.operation,
            labels=dict(request.labels),
            failure_type=request.failure_type,
        )
        jobs, token = await self._router.listing.page(
            queue,
            states,
            page_size,
            request.page_token,
            full=full,
            scope=_scope(wanted),
            keep=_keep(wanted),
        )
        return wire.ListJobsResponse(
            jobs=[convert.job_to_wire(job, full=full) for job in jobs], next_page_token=token
        )

    async def WatchJob(
        self, request: job_service_pb2.WatchJobRequest, context: object
    ) -> AsyncIterator[bytes]:
        """Streams one job until its end."""
        checker = Checker()
        queue, ulid = checker.job_id("job_id", request.job_id)
        wish = wish_of(checker, request)
        checker.raise_if_any()
        full = request.view != job_pb2.JOB_VIEW_BASIC
        events = self._router.watch_job(queue, ulid, wish)
        async for answer in answers(events, self._router.clock, full=full):
            yield answer

    async def RunJob(
        self, request: job_service_pb2.RunJobRequest, context: object
    ) -> AsyncIterator[bytes]:
        """Submits a job and streams it until its end."""
        checker = Checker()
        wish = wish_of(checker, request)
        checker.raise_if_any()
        submission: asyncio.Future[Accepted]
        try:
            job = self._submissions.new_job(request.submit)
            # Apart from the call: a caller that goes while it is under way has a job all the same.
            submission = self._router.apart(self._submit_one(job))
        except NotNow as late:
            job = late.job
            submission = self._router.apart(self._known_one(late))
        full = request.view != job_pb2.JOB_VIEW_BASIC
        try:
            one = await asyncio.shield(submission)
            events = self._router.watch_job(job.queue, one.job_id[-ULID_LENGTH:], wish)
            async for answer in answers(events, self._router.clock, full=full):
                yield answer
        except (asyncio.CancelledError, GeneratorExit):
            if request.cancel_on_disconnect:
                own = _own_ulid(submission, job)
                self._router.cancel_in_background(job.queue, own, "its caller broke off")
            raise

    async def _submit_one(self, job: NewJob) -> Accepted:
        return accepted((await self._router.submit(job.queue, (job,)))[0], job)

    async def _known_one(self, late: NotNow) -> Accepted:
        return accepted(await known_or_refused(self._router, late), late.job)

    async def WatchJobs(
        self, request: job_service_pb2.WatchJobsRequest, context: object
    ) -> AsyncIterator[Any]:
        """Streams the jobs of a queue that match a filter."""
        checker = Checker()
        queue = checker.queue("queue", request.queue)
        if request.operation:
            checker.operation("operation", request.operation)
        states = bulk.states_of(checker, "states", request.states)
        checker.labels("labels", request.labels)
        ulids = bulk.ulids_of(checker, "job_ids", queue, request.job_ids)
        if request.cursor and not _LOG_ID.fullmatch(request.cursor):
            checker.add("cursor", "is not a cursor that this method gave out; watch without one")
        if request.cursor and request.only_changes:
            checker.add("only_changes", "can't be combined with a cursor")
        checker.raise_if_any()
        full = request.view == job_pb2.JOB_VIEW_FULL
        wanted = JobFilter(queue, operation=request.operation, labels=dict(request.labels))
        async for job, cursor in self._router.watch_jobs(
            queue,
            keep=_keep(wanted),
            states=states,
            ulids=ulids,
            full=full,
            cursor=request.cursor,
            only_changes=request.only_changes,
        ):
            answer = wire.WatchJobsResponse(cursor=cursor)
            if isinstance(job, Job):
                answer.job.MergeFrom(convert.job_to_wire(job, full=full))
            else:
                convert.set_moment(answer.bookmark.time, self._router.clock.now_ms())
                answer.bookmark.caught_up = job is not None
            yield answer

    async def CancelJob(self, request: job_service_pb2.CancelJobRequest, context: object) -> Any:
        """Asks for the end of a job."""
        checker = Checker()
        queue, ulid = checker.job_id("job_id", request.job_id)
        reason = checker.text("reason", request.reason, MAX_REASON_BYTES)
        checker.raise_if_any()
        job = await self._router.cancel_job(queue, ulid, reason)
        return wire.CancelJobResponse(job=convert.job_to_wire(job, full=False))

    async def RetryJob(self, request: job_service_pb2.RetryJobRequest, context: object) -> Any:
        """Puts a job back after its end."""
        checker = Checker()
        queue, ulid = checker.job_id("job_id", request.job_id)
        reason = checker.text("reason", request.reason, MAX_REASON_BYTES)
        delay_ms = checker.duration_ms("delay", request.delay, 0, TEN_YEARS_MS)
        checker.raise_if_any()
        job = await self._router.retry_job(queue, ulid, reason, delay_ms, convert.record_facts)
        return wire.RetryJobResponse(job=convert.job_to_wire(job, full=False))

    async def RetryJobs(
        self, request: job_service_pb2.RetryJobsRequest, context: object
    ) -> AsyncIterator[Any]:
        """Puts many jobs back after their end."""
        checker = Checker()
        wanted = bulk.job_filter(checker, request.filter)
        reason = checker.text("reason", request.reason, MAX_REASON_BYTES)
        most = bulk.most_jobs(checker, request.max_jobs)
        per_second = bulk.pace(checker, request.max_per_second)
        checker.raise_if_any()
        steps = self._router.bulk.retry(
            wanted,
            reason,
            convert.record_facts,
            dry_run=request.dry_run,
            max_jobs=most,
            per_second=per_second,
        )
        async for answer in bulk.answers(steps, job_service_pb2.RetryJobsResponse):
            yield answer

    async def CancelJobs(
        self, request: job_service_pb2.CancelJobsRequest, context: object
    ) -> AsyncIterator[Any]:
        """Asks for the end of many jobs."""
        checker = Checker()
        wanted = bulk.job_filter(checker, request.filter)
        reason = checker.text("reason", request.reason, MAX_REASON_BYTES)
        most = bulk.most_jobs(checker, request.max_jobs)
        checker.raise_if_any()
        steps = self._router.bulk.cancel(
            wanted, reason, convert.record_facts, dry_run=request.dry_run, max_jobs=most
        )
        async for answer in bulk.answers(steps, job_service_pb2.CancelJobsResponse):
            yield answer


def _job_id(job_id: str) -> tuple[str, str]:
    checker = Checker()
    parts = checker.job_id("job_id", job_id)
    checker.raise_if_any()
    return parts


async def _own_ulid(submission: Awaitable[Accepted], job: NewJob) -> str:
    """Returns the job that a submission made, '' where it made none."""
    try:
        accepted = await submission
    except JobwireError:
        return ""
    # A job that holds the unique key in place of this one is not this caller's to end.
    if job.unique and accepted.existing_record == b"":
        return ""
    return accepted.job_id[-ULID_LENGTH:]


def _keep(wanted: JobFilter) -> Callable[[Job], bool]:
    """Returns what says whether a job is wanted."""

    def keep(job: Job) -> bool:
        facts = convert.record_facts(job.record) if wanted.reads_records else None
        return wanted.match(job, facts)

    return keep


def _scope(wanted: JobFilter) -> str:
    """Returns what a page token of a listing depends on."""
    if not wanted.labels and not wanted.failure_type:
        return wanted.operation
    return repr((wanted.operation, sorted(wanted.labels.items()), wanted.failure_type))

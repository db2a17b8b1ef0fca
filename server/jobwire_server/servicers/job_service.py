"""JobService: producers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from jobwire.v1 import job_pb2, job_service_pb2
from jobwire_server.errors import InvalidRequest, JobwireError, StoreUnavailable, Violation
from jobwire_server.model import Accepted, JobState, NewJob
from jobwire_server.options import Limits
from jobwire_server.router import Router
from jobwire_server.servicers import convert, wire
from jobwire_server.servicers.checks import Checker
from jobwire_server.servicers.submission import Submissions, check_same

MAX_REASON_BYTES = 512
_STATES = [int(state) for state in JobState]


class JobService:
    """Converts, asks the router, and converts back."""

    def __init__(self, router: Router, limits: Limits) -> None:
        self._router = router
        self._limits = limits
        self._submissions = Submissions(limits, router.clock.now_ms, router.new_ulid)

    async def SubmitJob(
        self, request: job_service_pb2.SubmitJobRequest, context: object
    ) -> job_service_pb2.SubmitJobResponse:
        """Accepts one job."""
        job = self._submissions.new_job(request)
        accepted = (await self._router.submit(job.queue, (job,)))[0]
        return _response(accepted, job)

    async def SubmitJobs(
        self, request: job_service_pb2.SubmitJobsRequest, context: object
    ) -> job_service_pb2.SubmitJobsResponse:
        """Accepts a batch, item by item."""
        requests = request.requests
        if not 0 < len(requests) <= self._limits.max_batch_jobs:
            text = f"must hold 1 to {self._limits.max_batch_jobs} jobs, not {len(requests)}"
            raise InvalidRequest([Violation("requests", text)])
        results: list[job_service_pb2.SubmitResult | None] = [None] * len(requests)
        by_queue: dict[str, list[tuple[int, NewJob]]] = {}
        for at, item in enumerate(requests):
            try:
                job = self._submissions.new_job(item)
            except InvalidRequest as error:
                results[at] = _refused(error)
            else:
                by_queue.setdefault(job.queue, []).append((at, job))
        failures = await asyncio.gather(
            *(self._submit_group(queue, group, results) for queue, group in by_queue.items())
        )
        # Nothing was accepted because the store is away: then the call fails, which clients know
        # how to retry.
        away = [error for error in failures if isinstance(error, StoreUnavailable)]
        if failures and len(away) == len(failures):
            raise away[0]
        answered = [result for result in results if result is not None]
        return job_service_pb2.SubmitJobsResponse(results=answered)

    async def _submit_group(
        self,
        queue: str,
        group: list[tuple[int, NewJob]],
        results: list[job_service_pb2.SubmitResult | None],
    ) -> JobwireError | None:
        try:
            answers = await self._router.submit(queue, [job for _, job in group])
        except JobwireError as error:
            for at, _ in group:
                results[at] = _refused(error)
            return error
        for (at, job), accepted in zip(group, answers, strict=True):
            try:
                results[at] = job_service_pb2.SubmitResult(accepted=_response(accepted, job))
            except JobwireError as error:
                results[at] = _refused(error)
        return None

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
        for at, state in enumerate(request.states):
            if state not in _STATES:
                checker.add(f"states[{at}]", "must be one of the states a job can be in")
        checker.raise_if_any()
        operation = request.operation
        full = request.view == job_pb2.JOB_VIEW_FULL
        jobs, token = await self._router.list_jobs(
            queue,
            [JobState(state) for state in request.states],
            page_size,
            request.page_token,
            full=full,
            scope=operation,
            keep=lambda job: (
                not operation or convert.record_facts(job.record).operation == operation
            ),
        )
        return wire.ListJobsResponse(
            jobs=[convert.job_to_wire(job, full=full) for job in jobs], next_page_token=token
        )

    async def WatchJob(
        self, request: job_service_pb2.WatchJobRequest, context: object
    ) -> AsyncIterator[Any]:
        """Streams one job until its end."""
        queue, ulid = _job_id(request.job_id)
        full = request.view != job_pb2.JOB_VIEW_BASIC
        async for job in self._router.watch_job(queue, ulid):
            answer = wire.WatchJobResponse()
            if job is None:
                convert.set_moment(answer.bookmark.time, self._router.clock.now_ms())
            else:
                answer.job.CopyFrom(convert.job_to_wire(job, full=full))
            yield answer

    async def CancelJob(self, request: job_service_pb2.CancelJobRequest, context: object) -> Any:
        """Asks for the end of a job."""
        checker = Checker()
        queue, ulid = checker.job_id("job_id", request.job_id)
        reason = checker.text("reason", request.reason, MAX_REASON_BYTES)
        checker.raise_if_any()
        job = await self._router.cancel_job(queue, ulid, reason)
        return wire.CancelJobResponse(job=convert.job_to_wire(job, full=False))


def _job_id(job_id: str) -> tuple[str, str]:
    checker = Checker()
    parts = checker.job_id("job_id", job_id)
    checker.raise_if_any()
    return parts


def _response(accepted: Accepted, job: NewJob) -> job_service_pb2.SubmitJobResponse:
    check_same(accepted, job)
    return job_service_pb2.SubmitJobResponse(
        job_id=accepted.job_id,
        state=accepted.state.value,  # type: ignore[arg-type]
        existed=accepted.existing_record is not None,
    )


def _refused(error: JobwireError) -> job_service_pb2.SubmitResult:
    return job_service_pb2.SubmitResult(error=convert.item_error(error))

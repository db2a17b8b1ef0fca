"""JobService: producers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from jobwire.v1 import job_service_pb2
from jobwire_server.broker.router import Router
from jobwire_server.domain.options import Limits
from jobwire_server.servicers import convert, many_jobs, wire
from jobwire_server.servicers.checks import MAX_REASON_BYTES, TEN_YEARS_MS, Checker
from jobwire_server.servicers.produce import ProduceStreams
from jobwire_server.servicers.producer_frames import ProducerFrameChecks
from jobwire_server.servicers.submission import JobChecks, check_batch
from jobwire_server.servicers.submit_answers import submit_response, submit_results
from jobwire_server.servicers.views import wants_full
from jobwire_server.servicers.watching import answers, job_step, wish_of

MAX_BATCH = 1_000
"""Jobs of a batch, whatever the server is configured for."""
MAX_BATCH_ID = 56
"""With `:` and the index of an item behind it, it still is a request id."""


class JobService:
    """Converts, asks the router, and converts back."""

    def __init__(self, router: Router, limits: Limits) -> None:
        self._router = router
        self._jobs = JobChecks(limits, router.new_jobs, router.clock.now_ms)
        frames = ProducerFrameChecks(self._jobs, limits.max_batch_jobs)
        self._streams = ProduceStreams(router.producers, frames, router.server_id)

    async def SubmitJob(self, request: job_service_pb2.SubmitJobRequest, context: object) -> Any:
        """Accept one job."""
        job = self._jobs.check(request)
        return submit_response(await self._router.submissions.submit_one(job))

    async def SubmitJobs(self, request: job_service_pb2.SubmitJobsRequest, context: object) -> Any:
        """Accept a batch, item by item."""
        submissions, requests = self._router.submissions, request.requests
        checker = Checker()
        if request.request_id:
            checker.request_id("request_id", request.request_id, MAX_BATCH_ID)
        if len(requests) > MAX_BATCH:
            checker.add("requests", f"must hold 1 to {MAX_BATCH} jobs, not {len(requests)}")
        checker.raise_if_any()
        too_many = submissions.check_batch(len(requests), lambda: may_be_repeat(request))
        checked = await check_batch(self._jobs, requests, request.ByteSize(), request.request_id)
        answers = await submissions.submit_batch(checked, too_many)
        return wire.SubmitJobsResponse(results=submit_results(answers))

    async def Produce(
        self, requests: AsyncIterator[job_service_pb2.ProduceRequest], context: Any
    ) -> None:
        """Hold a producer's stream."""
        await self._streams.hold(requests, context)

    async def GetJob(self, request: job_service_pb2.GetJobRequest, context: object) -> Any:
        """Return one job."""
        checker = Checker()
        queue, ulid = checker.job_id("job_id", request.job_id)
        full = wants_full(checker, request.view, unset=True)
        checker.raise_if_any()
        job = await self._router.get_job(queue, ulid, full=full)
        return wire.GetJobResponse(job=convert.job_to_wire(job, full=full))

    async def ListJobs(self, request: job_service_pb2.ListJobsRequest, context: object) -> Any:
        """List jobs, page by page."""
        checker = Checker()
        wanted = many_jobs.job_filter(checker, request.filter, required=False)
        page_size = checker.count("page_size", request.page_size, 1, 1000, 50)
        full = wants_full(checker, request.view, unset=False)
        reverse = many_jobs.reversed_order(checker, request.order_by)
        checker.raise_if_any()
        jobs, token = await self._router.listing.page(
            wanted, page_size, request.page_token, full=full, reverse=reverse
        )
        return wire.ListJobsResponse(
            jobs=[convert.job_to_wire(job, full=full) for job in jobs], next_page_token=token
        )

    async def ListAttempts(
        self, request: job_service_pb2.ListAttemptsRequest, context: object
    ) -> Any:
        """List the attempts of a job, page by page."""
        checker = Checker()
        queue, ulid = checker.job_id("job_id", request.job_id)
        page_size = checker.count("page_size", request.page_size, 1, 1000, 50)
        checker.raise_if_any()
        attempts, token = await self._router.listing.attempts(
            queue, ulid, page_size, request.page_token
        )
        return wire.ListAttemptsResponse(
            attempts=[convert.attempt_to_wire(one) for one in attempts], next_page_token=token
        )

    async def WatchJob(
        self, request: job_service_pb2.WatchJobRequest, context: object
    ) -> AsyncIterator[bytes]:
        """Stream one job until its end."""
        checker = Checker()
        queue, ulid = checker.job_id("job_id", request.job_id)
        wish = wish_of(checker, request)
        full = wants_full(checker, request.view, unset=True)
        checker.raise_if_any()
        events = self._router.watch_job(queue, ulid, wish)
        async with aclosing(answers(events, self._router.clock, full=full)) as stream:
            async for answer in stream:
                yield answer

    async def RunJob(
        self, request: job_service_pb2.RunJobRequest, context: object
    ) -> AsyncIterator[bytes]:
        """Submit a job and stream it until its end."""
        checker = Checker()
        wish = wish_of(checker, request)
        full = wants_full(checker, request.view, unset=True)
        checker.raise_if_any()
        job = self._jobs.check(request.submit, inside="submit.")
        events = self._router.run_job(job, wish, cancel_on_disconnect=request.cancel_on_disconnect)
        async with aclosing(answers(events, self._router.clock, full=full)) as stream:
            async for answer in stream:
                yield answer

    async def WatchJobs(
        self, request: job_service_pb2.WatchJobsRequest, context: object
    ) -> AsyncIterator[Any]:
        """Stream the jobs of a queue that match a filter."""
        checker = Checker()
        wanted = many_jobs.watched_jobs(checker, request)
        full = wants_full(checker, request.view, unset=False)
        checker.raise_if_any()
        steps = self._router.watch_jobs(
            wanted, full=full, cursor=request.cursor, only_changes=request.only_changes
        )
        async for job, cursor in steps:
            yield job_step(job, cursor, self._router.clock, full=full)

    async def CancelJob(self, request: job_service_pb2.CancelJobRequest, context: object) -> Any:
        """Ask for the end of a job."""
        checker = Checker()
        queue, ulid = checker.job_id("job_id", request.job_id)
        reason = checker.text("reason", request.reason, MAX_REASON_BYTES)
        checker.raise_if_any()
        job = await self._router.cancel_job(queue, ulid, reason)
        return wire.CancelJobResponse(job=convert.job_to_wire(job, full=False))

    async def RetryJob(self, request: job_service_pb2.RetryJobRequest, context: object) -> Any:
        """Put a job back after its end."""
        checker = Checker()
        queue, ulid = checker.job_id("job_id", request.job_id)
        reason = checker.text("reason", request.reason, MAX_REASON_BYTES)
        delay_ms = checker.duration_ms("delay", request.delay, 0, TEN_YEARS_MS)
        if request.request_id:
            checker.request_id("request_id", request.request_id)
        checker.raise_if_any()
        job = await self._router.retry_job(queue, ulid, reason, delay_ms, request.request_id)
        return wire.RetryJobResponse(job=convert.job_to_wire(job, full=False))

    async def RetryJobs(
        self, request: job_service_pb2.RetryJobsRequest, context: object
    ) -> AsyncIterator[Any]:
        """Put many jobs back after their end."""
        checker = Checker()
        wanted = many_jobs.job_filter(checker, request.filter)
        reason = checker.text("reason", request.reason, MAX_REASON_BYTES)
        most = many_jobs.most_jobs(checker, request.max_jobs)
        per_second = many_jobs.pace(checker, request.max_per_second)
        checker.raise_if_any()
        steps = self._router.bulk.retry(
            wanted,
            reason,
            dry_run=request.dry_run,
            max_jobs=most,
            per_second=per_second,
        )
        async for answer in many_jobs.answers(steps, job_service_pb2.RetryJobsResponse):
            yield answer

    async def CancelJobs(
        self, request: job_service_pb2.CancelJobsRequest, context: object
    ) -> AsyncIterator[Any]:
        """Ask for the end of many jobs."""
        checker = Checker()
        wanted = many_jobs.job_filter(checker, request.filter)
        reason = checker.text("reason", request.reason, MAX_REASON_BYTES)
        most = many_jobs.most_jobs(checker, request.max_jobs)
        checker.raise_if_any()
        steps = self._router.bulk.cancel(wanted, reason, dry_run=request.dry_run, max_jobs=most)
        async for answer in many_jobs.answers(steps, job_service_pb2.CancelJobsResponse):
            yield answer


def may_be_repeat(request: job_service_pb2.SubmitJobsRequest) -> bool:
    """Return whether a job of a batch has an id, its own or the batch's."""
    return bool(
        request.request_id or any(item.request_id or item.job_id for item in request.requests)
    )

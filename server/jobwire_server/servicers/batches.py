"""SubmitJobs: many submissions in one call, each with an answer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from jobwire.v1 import job_service_pb2
from jobwire_server.broker.router import Router
from jobwire_server.domain.errors import (
    InvalidRequest,
    JobwireError,
    ServerBusy,
    StoreUnavailable,
    StoreUnfit,
    Violation,
)
from jobwire_server.domain.model import Accepted, NewJob
from jobwire_server.domain.options import Limits
from jobwire_server.servicers import convert, wire
from jobwire_server.servicers.checks import Checker
from jobwire_server.servicers.submission import NotNow, Submissions, check_same

MAX_BATCH_ID = 56
"""With `:` and the place of an item behind it, it still is a request id."""
PASSING = (StoreUnavailable, StoreUnfit, ServerBusy)
"""Errors of the call, which say nothing about the jobs."""
LOOK_UPS = 100
"""Of one call to the store."""

Item = tuple[int, NewJob]
"""A job and its place in the batch."""
Late = tuple[int, NotNow]
"""One that can't be accepted now."""


class Batches:
    """Submits batches.

    Args:
        router: Takes the jobs, those of one queue at a time.
        submissions: Makes them.
        limits: How many a batch may hold.
    """

    def __init__(self, router: Router, submissions: Submissions, limits: Limits) -> None:
        self._router = router
        self._submissions = submissions
        self._limits = limits

    async def submit(self, request: job_service_pb2.SubmitJobsRequest) -> list[bytes]:
        """Returns a SubmitResult for each job, serialized.

        Raises:
            InvalidRequest: The batch is empty or too large.
            JobwireError: One of PASSING: no job has an answer.
        """
        requests, batch_id = request.requests, request.request_id
        if batch_id:
            checker = Checker()
            checker.request_id("request_id", batch_id, MAX_BATCH_ID)
            checker.raise_if_any()
        too_many: InvalidRequest | None = None
        if not 0 < len(requests) <= self._limits.max_batch_jobs:
            text = f"must hold 1 to {self._limits.max_batch_jobs} jobs, not {len(requests)}"
            too_many = InvalidRequest([Violation("requests", text)])
            if not batch_id and not any(item.request_id or item.job_id for item in requests):
                raise too_many
        self._router.check_room(len(requests))
        results: list[bytes | None] = [None] * len(requests)
        by_queue: dict[str, list[Item]] = {}
        late: dict[str, list[Late]] = {}
        for at, item in enumerate(requests):
            try:
                job = self._submissions.new_job(item, f"{batch_id}:{at}" if batch_id else "")
            except NotNow as error:
                if error.named:
                    late.setdefault(error.job.queue, []).append((at, error))
                else:
                    results[at] = _refused(error.refusal)
            except InvalidRequest as error:
                results[at] = _refused(error)
            else:
                if too_many is None:
                    by_queue.setdefault(job.queue, []).append((at, job))
                else:
                    # The limit was another one when the batch was first sent, perhaps.
                    late.setdefault(job.queue, []).append((at, NotNow(too_many, job, True)))
        failures = await asyncio.gather(
            *(self._submit_group(queue, group, results) for queue, group in by_queue.items()),
            *(self._look_up(queue, group, results) for queue, group in late.items()),
        )
        # Where not a single job has an answer the call fails, which clients know how to repeat.
        passing = [error for error in failures if isinstance(error, PASSING)]
        if failures and len(passing) == len(failures):
            # That of which least is known: what the store did not answer may be written.
            raise min(passing, key=lambda error: PASSING.index(type(error)))
        answered = [result for result in results if result is not None]
        if too_many is not None and not any(map(_is_accepted, answered)):
            raise too_many
        return answered

    async def _submit_group(
        self, queue: str, group: Sequence[Item], results: list[bytes | None]
    ) -> JobwireError | None:
        try:
            answers = await self._router.submit(queue, [job for _, job in group])
        except JobwireError as error:
            for at, _ in group:
                results[at] = _refused(error)
            return error
        for (at, job), answer in zip(group, answers, strict=True):
            if type(answer) is Accepted and answer.existing_record is None and answer.state:
                results[at] = wire.accepted(answer.job_id, answer.state, in_batch=True)
            else:
                results[at] = _result(answer, job)
        return None

    async def _look_up(
        self, queue: str, group: Sequence[Late], results: list[bytes | None]
    ) -> JobwireError | None:
        for first in range(0, len(group), LOOK_UPS):
            some = group[first : first + LOOK_UPS]
            try:
                answers = await self._router.known(queue, [late.job for _, late in some])
            except JobwireError as error:
                for at, _ in group[first:]:
                    results[at] = _refused(error)
                return error
            for (at, late), answer in zip(some, answers, strict=True):
                results[at] = _result(answer or late.refusal, late.job)
        return None


async def known_or_refused(router: Router, late: NotNow) -> Accepted | JobwireError:
    """Returns what a job that can't be accepted now was answered before.

    Raises:
        InvalidRequest: It never was accepted.
    """
    answer = (await router.known(late.job.queue, (late.job,)))[0] if late.named else None
    if answer is None:
        raise late.refusal
    return answer


def accepted(answer: Accepted | JobwireError, job: NewJob) -> Accepted:
    """Returns the answer to a submission; raises it if it is a refusal, or AlreadyExists."""
    if isinstance(answer, JobwireError):
        raise answer
    check_same(answer, job)
    return answer


def response(answer: Accepted | JobwireError, job: NewJob) -> job_service_pb2.SubmitJobResponse:
    """Returns the answer to a submission as the contract tells it. Raises as `accepted`."""
    one = accepted(answer, job)
    return job_service_pb2.SubmitJobResponse(
        job_id=one.job_id,
        state=one.state.value if one.state else 0,  # type: ignore[arg-type]
        existed=one.existed,
    )


def _result(answer: Accepted | JobwireError, job: NewJob) -> bytes:
    try:
        result = job_service_pb2.SubmitResult(accepted=response(answer, job))
    except JobwireError as error:
        return _refused(error)
    return result.SerializeToString()


def _refused(error: JobwireError) -> bytes:
    return job_service_pb2.SubmitResult(error=convert.item_error(error)).SerializeToString()


def _is_accepted(result: bytes) -> bool:
    return job_service_pb2.SubmitResult.FromString(result).HasField("accepted")

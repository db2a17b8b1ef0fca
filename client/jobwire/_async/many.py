"""Follows the jobs of a queue."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from jobwire._async.calls import STREAM_LIMIT_S, AsyncCalls, NextCall
from jobwire._repeat import Backoff, Deadline, async_sleep
from jobwire.errors import CallError, NotFound, OutputTrimmed
from jobwire.models import Job
from jobwire.v1.job_service_pb2 import GetJobRequest, WatchJobsRequest


class AsyncQueueWatch:
    """Reads WatchJobs, over breaks of connections, and remembers what it yielded.

    Args:
        calls: The way to the servers.
        request: The filter.
        timeout_s: For each single call, and until the first answer.
        reconnect_s: How long to keep trying while no server answers.
    """

    def __init__(
        self,
        calls: AsyncCalls,
        request: WatchJobsRequest,
        timeout_s: float | None,
        reconnect_s: float | None,
    ) -> None:
        self._calls = calls
        self._request = request
        self._timeout_s = timeout_s
        self._reconnect_s = reconnect_s
        self._told: dict[str, int] = {}
        """Revisions of the live jobs that were yielded."""
        self._awaited = set(request.filter.job_ids)
        self._began = False
        self._present: set[str] | None = None
        """Jobs that this stream has listed so far; None for one that resumed."""

    async def events(self) -> AsyncGenerator[Job]:
        """Yield jobs until all of those named have ended."""
        backoff = Backoff()
        while True:
            answers = self._calls.stream(
                self._next_call,
                deadline=Deadline(None),
                late="",
                first_s=self._timeout_s,
                reconnect_s=self._reconnect_s,
            )
            try:
                async with aclosing(answers):
                    async for answer in answers:
                        backoff.reset()
                        jobs = [Job.from_proto(answer.job)] if answer.HasField("job") else []
                        if answer.HasField("bookmark") and answer.bookmark.caught_up:
                            jobs = await self._gone_meanwhile()
                        self._request.cursor = answer.cursor or self._request.cursor
                        for job in jobs:
                            if self._is_news(job):
                                yield job
                        if self._request.filter.job_ids and not self._awaited:
                            return
            except CallError as error:
                if not isinstance(error, OutputTrimmed) and error.reason != "WATCH_LAGGED":
                    raise
                self._request.cursor = ""
            await async_sleep(backoff.next_s())

    def _next_call(self) -> NextCall:
        if self._began:
            self._request.only_changes = False
        self._present = None if self._request.cursor or self._request.only_changes else set()
        return self._calls.jobs.WatchJobs, self._request, STREAM_LIMIT_S

    def _is_news(self, job: Job) -> bool:
        if self._present is not None:
            self._present.add(job.id)
        if self._request.filter.job_ids and job.id not in self._awaited:
            return False
        if job.revision <= self._told.get(job.id, -1):
            return False
        if job.state.is_terminal:
            self._told.pop(job.id, None)
            self._awaited.discard(job.id)
        else:
            self._told[job.id] = job.revision
        return True

    async def _gone_meanwhile(self) -> list[Job]:
        """Read the jobs that were yielded before and that a new list lacks: most have ended."""
        present, self._present = self._present, None
        self._began = True
        if present is None:
            return []
        wanted = self._request.filter
        if not (wanted.states or wanted.operation or wanted.labels):
            # A job that is named but not listed is no longer known.
            self._awaited &= present | self._told.keys()
        jobs = []
        for job_id in sorted(self._told.keys() - present):
            request = GetJobRequest(job_id=job_id, view=self._request.view)
            try:
                answer = await self._calls.unary(self._calls.jobs.GetJob, request, self._timeout_s)
            except NotFound:
                self._told.pop(job_id, None)
                self._awaited.discard(job_id)
                continue
            jobs.append(Job.from_proto(answer.job))
        return jobs

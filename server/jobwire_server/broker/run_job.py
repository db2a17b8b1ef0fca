"""RunJob: a submission and the watch of what it made, in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import aclosing

import structlog

from jobwire_server.broker.lanes import QueueLanes
from jobwire_server.broker.submissions import Submission, Submissions
from jobwire_server.domain.background import OwnedTasks
from jobwire_server.domain.errors import InvalidRequest, JobwireError
from jobwire_server.domain.ids import ULID
from jobwire_server.domain.model import Accepted, NewJob, NotNow
from jobwire_server.watch.job_watch import JobCourse, JobWatch, WatchWish

log = structlog.get_logger(__name__)


class JobRuns:
    """Submits jobs and watches them until they end.

    Args:
        submissions: Accepts them.
        lanes: Cancel them.
        watch: Follows them.
        tasks: Go on with what a caller has left.
    """

    def __init__(
        self, submissions: Submissions, lanes: QueueLanes, watch: JobWatch, tasks: OwnedTasks
    ) -> None:
        self._submissions = submissions
        self._lanes = lanes
        self._watch = watch
        self._tasks = tasks

    async def run(
        self, submission: Submission, wish: WatchWish, *, cancel_on_disconnect: bool
    ) -> JobCourse:
        """Submit a job and yield its course, as `watch_job`.

        Args:
            submission: The job, as its checks found it.
            wish: What of it is wanted.
            cancel_on_disconnect: True: ask for its end when the caller goes before.

        Raises:
            JobwireError: As `Submissions.submit_one` and `watch_job`.
        """
        if isinstance(submission, InvalidRequest):
            raise submission
        job = submission.job if isinstance(submission, NotNow) else submission
        # Apart from the call: a caller that goes while it is under way has a job all the same.
        accepted = self._tasks.begin(self._submissions.submit_one(submission))
        try:
            ulid = (await asyncio.shield(accepted)).job_id[ULID]
            async with aclosing(self._watch.watch(job.queue, ulid, wish)) as steps:  # type: ignore[type-var]
                async for step in steps:
                    yield step
        except (asyncio.CancelledError, GeneratorExit):
            if cancel_on_disconnect:
                self._tasks.begin(self._cancel(job, accepted))
            raise

    async def _cancel(self, job: NewJob, submission: Awaitable[Accepted]) -> None:
        try:
            accepted = await submission
        except JobwireError:
            return
        # A job that holds the unique key in place of this one is not this caller's to end.
        if job.unique and accepted.existing_record == b"":
            return
        wanted = accepted.job_id[ULID], "its caller broke off"
        try:
            await self._lanes.of(job.queue).cancel.one(wanted)
        except JobwireError as error:
            log.warning("job not cancelled", job_id=accepted.job_id, error=error.message)

"""Submissions: new jobs on their way into the store, one at a time or in batches.

Here it is decided whether a submission is a repeat of an earlier one, and what it is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from jobwire_server.broker.alarms import Alarms
from jobwire_server.broker.lanes import QueueLanes
from jobwire_server.broker.open_queues import OpenQueues
from jobwire_server.domain.errors import (
    AlreadyExists,
    InvalidRequest,
    JobwireError,
    ServerBusy,
    ServerDraining,
    StoreFull,
    StoreUnavailable,
    StoreUnfit,
    Violation,
)
from jobwire_server.domain.model import Accepted, NewJob, NotNow
from jobwire_server.domain.options import Limits
from jobwire_server.domain.records import RecordCodec
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.store.connection.condition import StoreCondition
from jobwire_server.store.group_commit import Backlog

PASSING = (StoreUnavailable, StoreUnfit, ServerBusy)
"""Errors of a call, which say nothing about its jobs."""
LOOK_UPS = 100
"""Of one call to the store."""

Submission = NewJob | NotNow | InvalidRequest
"""What the checks of a request found: a job, one that can't be accepted now, or a refusal."""
_Item = tuple[int, NewJob]
"""A job and its index in the batch."""
_Late = tuple[int, NotNow]


class Submissions:
    """Has jobs written.

    Args:
        records: Compares a repeat with the job that was accepted.
        open_queues: Have the lanes of submissions.
        lanes: Know which jobs were accepted before.
        alarms: Told when a job is due.
        condition: Of the store.
        backlog: What waits for the store.
        limits: How many jobs a batch may hold.
        clock: The store's time.
    """

    def __init__(
        self,
        records: RecordCodec,
        open_queues: OpenQueues,
        lanes: QueueLanes,
        alarms: Alarms,
        condition: StoreCondition,
        backlog: Backlog,
        limits: Limits,
        clock: StoreClock,
    ) -> None:
        self._records = records
        self._open_queues = open_queues
        self._lanes = lanes
        self._alarms = alarms
        self._condition = condition
        self._backlog = backlog
        self._limits = limits
        self._now_ms = clock.now_ms
        self._draining = False

    def drain(self) -> None:
        """Refuse new jobs from now on."""
        self._draining = True

    # -------------------------------------------------------------- submitting

    async def open_queues(self, items: Sequence[Submission]) -> None:
        """Have the queues of jobs opened, so that these jobs and later ones are accepted in the
        order in which they are submitted. What can't be opened is for each submission to find out.
        """
        find = self._open_queues.find
        queues = {item.queue for item in items if type(item) is NewJob}
        closed = {queue for queue in queues if not find(queue)}
        for queue in closed:
            if not self._draining:
                with suppress(JobwireError):
                    await self._open_queues.open(queue)

    async def submit_one(self, submission: Submission) -> Accepted:
        """Accept a job, or answer it as its first submission was.

        Raises:
            InvalidRequest: It is none, or can't be accepted now and never was.
            AlreadyExists: Its id has other content.
            JobwireError: As `submit`.
        """
        if type(submission) is not NewJob:
            return await self._known_or_refused(submission)
        # As `submit`, whose frame most single jobs would pay for.
        job, jobs = submission, (submission,)
        if self._draining:
            raise ServerDraining
        try:
            self._condition.check_fit()
            lane = self._open_queues.find(job.queue) or await self._open_queues.open(job.queue)
            answer = (await lane.submit(jobs))[0]
        except (StoreFull, StoreUnfit) as error:
            answer = (await self._known_or(error, job.queue, jobs))[0]
        if job.delay_ms or job.run_at_ms or job.expires_at_ms or job.deadline_ms:
            self._announce_due(job)
        if type(answer) is Accepted and answer.existing_record is None:
            return answer
        return self._settled(answer, job)

    async def _known_or_refused(self, submission: Submission) -> Accepted:
        if isinstance(submission, InvalidRequest):
            raise submission
        assert isinstance(submission, NotNow)
        if not submission.named:
            raise submission.refusal
        known = await self.known(submission.job.queue, (submission.job,))
        return self._settled(known[0] or submission.refusal, submission.job)

    async def submit(self, queue: str, jobs: Sequence[NewJob]) -> Sequence[Accepted | JobwireError]:
        """Accept jobs of one queue; answer each with what became of it or why it was refused:
        AlreadyExists, UniqueKeyTaken, QueueFull; StoreFull or StoreUnfit where another of them was
        accepted before.

        Raises:
            ServerDraining: The server shuts down.
            ServerBusy: Too much waits for the store.
            StoreUnavailable: The store does not answer.
            StoreFull: The store has no room; none of them was accepted, now or before.
            StoreUnfit: It is not to be trusted with jobs; the same.
        """
        if self._draining:
            raise ServerDraining
        try:
            self._condition.check_fit()
            lane = self._open_queues.find(queue) or await self._open_queues.open(queue)
            accepted = await lane.submit(jobs)
        except (StoreFull, StoreUnfit) as error:
            return await self._known_or(error, queue, jobs)
        for job in jobs:
            if job.delay_ms or job.run_at_ms or job.expires_at_ms or job.deadline_ms:
                self._announce_due(job)
        return accepted

    async def _known_or(
        self, error: JobwireError, queue: str, jobs: Sequence[NewJob]
    ) -> Sequence[Accepted | JobwireError]:
        """Answer those that were accepted before, and the others with the error."""
        known = await self.known(queue, jobs)
        if not any(known):
            raise error
        return [answer or error for answer in known]

    async def known(
        self, queue: str, jobs: Sequence[NewJob]
    ) -> Sequence[Accepted | JobwireError | None]:
        """Answer jobs that were accepted before, by their ids or request ids, as their first
        submission; None for each of the others. Nothing is written.

        For what can't be accepted now: a repeat is answered whatever has changed meanwhile.
        """
        return await self._lanes.of(queue).known.submit(jobs)

    def _announce_due(self, job: NewJob) -> None:
        now = self._now_ms()
        waits = [job.delay_ms] if job.delay_ms else []
        waits += [at - now for at in (job.run_at_ms, job.expires_at_ms, job.deadline_ms) if at]
        self._alarms.due_in(job.queue, min(waits))

    def _settled(self, answer: Accepted | JobwireError, job: NewJob) -> Accepted:
        """Return the answer to a submission; raise it if it is a refusal, or AlreadyExists."""
        if isinstance(answer, JobwireError):
            raise answer
        # Without a record it was written now, or another job stands for it: by the request id or
        # the unique key.
        if answer.existing_record and not self._records.same_content(
            answer.existing_record, job.record
        ):
            raise AlreadyExists(
                f"{job.job_id} was submitted with other content; give the new job an id of its own",
                metadata={"job_id": job.job_id},
            )
        return answer

    # ----------------------------------------------------------------- batches

    def check_batch(self, count: int, may_be_repeat: Callable[[], bool]) -> InvalidRequest | None:
        """Look at the size of a batch before anything is made of it.

        Args:
            count: Its jobs.
            may_be_repeat: Tells whether any of them has an id of its own; asked only if it matters.

        Returns:
            Why only a repeat can be answered now; None if the batch can be accepted.

        Raises:
            InvalidRequest: The batch is empty or too large, and no repeat.
            ServerBusy: So many could not wait for the store.
        """
        most = self._limits.max_batch_jobs
        refusal: InvalidRequest | None = None
        if not 0 < count <= most:
            text = f"must hold 1 to {most} jobs, not {count}"
            refusal = InvalidRequest([Violation("requests", text)])
            if not may_be_repeat():
                raise refusal
        self._backlog.check(count)
        return refusal

    async def submit_batch(
        self, items: Sequence[Submission], too_many: InvalidRequest | None
    ) -> Sequence[Accepted | JobwireError]:
        """Accept the jobs of a batch; answer each.

        Args:
            items: What the checks of each found.
            too_many: What `check_batch` said: only a repeat of an earlier batch is answered then.

        Raises:
            InvalidRequest: `too_many`, and none of them was accepted before.
            JobwireError: One of PASSING: no job has an answer.
        """
        answers: list[Accepted | JobwireError | None] = [None] * len(items)
        jobs: dict[str, list[_Item]] = {}
        late: dict[str, list[_Late]] = {}
        for at, item in enumerate(items):
            if type(item) is NewJob:
                if too_many is None:
                    jobs.setdefault(item.queue, []).append((at, item))
                else:
                    # The limit was another one when the batch was first sent, perhaps.
                    late.setdefault(item.queue, []).append((at, NotNow(item, too_many, True)))
            elif isinstance(item, NotNow):
                if item.named:
                    late.setdefault(item.job.queue, []).append((at, item))
                else:
                    answers[at] = item.refusal
            elif isinstance(item, InvalidRequest):
                answers[at] = item
        failures = await asyncio.gather(
            *(self._submit_group(queue, group, answers) for queue, group in jobs.items()),
            *(self._look_up(queue, group, answers) for queue, group in late.items()),
        )
        # Where not a single job has an answer the call fails, which clients know how to repeat.
        passing = [error for error in failures if isinstance(error, PASSING)]
        if failures and len(passing) == len(failures):
            # That of which least is known: what the store did not answer may be written.
            raise min(passing, key=lambda error: PASSING.index(type(error)))
        answered = [answer for answer in answers if answer is not None]
        if too_many is not None and not any(type(answer) is Accepted for answer in answered):
            raise too_many
        return answered

    async def _submit_group(
        self, queue: str, group: Sequence[_Item], answers: list[Accepted | JobwireError | None]
    ) -> JobwireError | None:
        try:
            written = await self.submit(queue, [job for _, job in group])
        except JobwireError as error:
            for at, _ in group:
                answers[at] = error
            return error
        for (at, job), answer in zip(group, written, strict=True):
            if type(answer) is Accepted and answer.existing_record is None:
                answers[at] = answer
            else:
                answers[at] = self._outcome(answer, job)
        return None

    async def _look_up(
        self, queue: str, group: Sequence[_Late], answers: list[Accepted | JobwireError | None]
    ) -> JobwireError | None:
        for first in range(0, len(group), LOOK_UPS):
            some = group[first : first + LOOK_UPS]
            try:
                known = await self.known(queue, [late.job for _, late in some])
            except JobwireError as error:
                for at, _ in group[first:]:
                    answers[at] = error
                return error
            for (at, late), answer in zip(some, known, strict=True):
                answers[at] = self._outcome(answer or late.refusal, late.job)
        return None

    def _outcome(self, answer: Accepted | JobwireError, job: NewJob) -> Accepted | JobwireError:
        try:
            return self._settled(answer, job)
        except JobwireError as error:
            return error

"""The ends of attempts that their workers tell, and of those that never reached a worker.

Each end is decided by the pure decisions on the job as it was read, and written only if the job
still is what it was; otherwise it is read and decided again. What the broker ends by itself is in
held_jobs.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from jobwire_server.broker.alarms import Alarms
from jobwire_server.broker.lanes import QueueLanes
from jobwire_server.domain.background import OwnedTasks
from jobwire_server.domain.decisions import endings
from jobwire_server.domain.decisions.endings import Ending
from jobwire_server.domain.errors import (
    JobNotFound,
    JobwireError,
    LeaseLost,
    StoreUnavailable,
    WrongState,
)
from jobwire_server.domain.ids import QUEUE, ULID, job_id_of
from jobwire_server.domain.model import (
    Assignment,
    Completed,
    Completion,
    Failure,
    Job,
    JobState,
    Released,
)
from jobwire_server.domain.options import BrokerOptions, RetryDefaults
from jobwire_server.store.attempts import SUCCEEDED, EndToWrite, SuccessToWrite
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.watch.follows import Follows

log = structlog.get_logger(__name__)

DECISIONS = 5
"""How often an ending is decided again because the job's state changed under it.

A running job's state changes once, to CANCELLING; more is a defect.
"""

Decide = Callable[[Job], Ending]
_UNDONE = StoreUnavailable("it is not known whether it was recorded; send it again")


class Attempts:
    """Ends attempts for their holders.

    Args:
        lanes: Where calls are gathered.
        options: Budgets and retention.
        random_fraction: Returns numbers in [0, 1) for the jitter of backoffs.
        alarms: Told when a next attempt is due.
        settings: Of the queues.
        tasks: Has jobs given back in the background.
        follows: Told of jobs that succeed.
    """

    def __init__(
        self,
        lanes: QueueLanes,
        options: BrokerOptions,
        random_fraction: Callable[[], float],
        alarms: Alarms,
        settings: QueueSettingsCache,
        tasks: OwnedTasks,
        follows: Follows,
    ) -> None:
        self._follows = follows
        self._lanes = lanes
        self._options = options
        self._random = random_fraction
        self._alarms = alarms
        self._settings = settings
        self._tasks = tasks

    async def _retry_defaults(self, queue: str) -> RetryDefaults:
        """Return what the unset retry fields of the queue's jobs mean now."""
        settings = await self._settings.get(queue)
        return endings.resolve(settings.retry, self._options.retry)

    async def _read(self, queue: str, ulid: str) -> Job:
        job = await self._lanes.of(queue).read_basic.one(ulid)
        if job is None:
            raise JobNotFound(job_id_of(queue, ulid))
        return job

    async def complete_many(
        self, worker_id: str, items: Sequence[Completion]
    ) -> list[Completed | JobwireError]:
        """End attempts over any queues; answer each with its outcome or why it was refused.

        Results go to the store as one batch for each queue; other ends are decided one by one, side
        by side.
        """
        outcomes: list[Completed | JobwireError] = [_UNDONE] * len(items)
        successes: dict[str, tuple[list[int], list[SuccessToWrite]]] = {}
        others: list[int] = []
        for at, (queue, ulid, token, outcome) in enumerate(items):
            if type(outcome) is bytes:
                group = successes.get(queue)
                if group is None:
                    group = successes[queue] = [], []
                group[0].append(at)
                group[1].append(SuccessToWrite(ulid, worker_id, token, outcome))
            else:
                others.append(at)

        async def succeed(queue: str, indexes: list[int], batch: list[SuccessToWrite]) -> None:
            try:
                answers = await self._lanes.of(queue).succeed.submit(batch)
            except JobwireError as error:
                answers = [error] * len(indexes)
            for at, answer in zip(indexes, answers, strict=True):
                outcomes[at] = answer
            if (followed := self._follows.of(queue)) is not None:
                for one, answer in zip(batch, answers, strict=True):
                    if answer is SUCCEEDED:
                        followed.succeeded(one.ulid, one.result)

        async def end(at: int) -> None:
            try:
                outcomes[at] = await self.complete(worker_id, items[at])
            except JobwireError as error:
                outcomes[at] = error

        await asyncio.gather(
            *(succeed(queue, *group) for queue, group in successes.items()), *map(end, others)
        )
        return outcomes

    async def complete(self, worker_id: str, item: Completion) -> Completed:
        """End an attempt as its holder says.

        A result completes the job. After a failure another attempt follows when the backoff is
        over, or the job is FAILED. What is given back returns to its queue. None confirms a
        cancellation.

        Raises:
            LeaseLost: The job is not the caller's.
            JobNotFound: There is none.
            WrongState: Nobody cancelled it, so that there is nothing to confirm.
        """
        queue, ulid, token, outcome = item
        if isinstance(outcome, bytes):
            success = SuccessToWrite(ulid, worker_id, token, outcome)
            answer = await self._lanes.of(queue).succeed.one(success)
            if isinstance(answer, JobwireError):
                raise answer
            if answer is SUCCEEDED and (followed := self._follows.of(queue)) is not None:
                followed.succeeded(ulid, outcome)
            return answer
        decide = await self._decision(queue, outcome)
        return await self._end_as_holder(queue, ulid, worker_id, token, decide)

    async def _decision(self, queue: str, outcome: Failure | Released | None) -> Decide:
        if isinstance(outcome, Failure):
            defaults = await self._retry_defaults(queue)
            return lambda job: endings.after_failure(job, outcome, defaults, self._random)
        if isinstance(outcome, Released):
            started, reason = outcome.started, outcome.reason
            return lambda job: endings.after_release(job, started, reason, self._options, told=True)
        return _after_confirmation

    async def _end_as_holder(
        self,
        queue: str,
        ulid: str,
        worker_id: str,
        fencing_token: int,
        decide: Decide,
        condition: str = "worker",
    ) -> Completed:
        lanes = self._lanes.of(queue)
        for _ in range(DECISIONS):
            job = await self._read(queue, ulid)
            mine = job.fencing_token == fencing_token and job.worker_id == worker_id
            # A job that is no longer the caller's may have been ended by this very call, whose
            # answer was lost, even if somebody has it again by now: the script can tell, and it
            # does not look at what was decided then.
            fits = mine and job.state.leased
            ending = decide(job) if fits else endings.after_cancellation()
            held = replace(
                job,
                worker_id=worker_id,
                fencing_token=fencing_token,
                # No state that a holder's job has: should it be the caller's after all, it is
                # decided again.
                state=job.state if fits else JobState.SUCCEEDED,
            )
            outcome = await lanes.end.one(EndToWrite(held, condition, ending))
            if isinstance(outcome, JobwireError):
                raise outcome
            if outcome is not None:
                if outcome.next_attempt_at_ms:
                    self._alarms.due_in(queue, ending.backoff_ms)
                return outcome
        raise StoreUnavailable(
            f"{job_id_of(queue, ulid)} changes faster than its ending can be decided"
        )

    def give_back(
        self,
        worker_id: str,
        assignments: Sequence[Assignment],
        claimed_after_ms: int = 0,
        *,
        sent: bool = False,
    ) -> None:
        """Return jobs that never reached their worker, in the background; if that fails their
        leases end.

        Args:
            worker_id: Who was to have them.
            assignments: What it was to have.
            claimed_after_ms: Leaves those alone that were claimed up to this moment, Unix ms.
            sent: True if they were on their way, so that the worker may have had them.
        """
        if assignments:
            self._tasks.begin(self._give_back(worker_id, assignments, claimed_after_ms, sent))

    async def _give_back(
        self,
        worker_id: str,
        assignments: Sequence[Assignment],
        claimed_after_ms: int,
        sent: bool,
    ) -> None:
        def decide(job: Job) -> Ending:
            if job.started_at_ms <= claimed_after_ms:
                raise LeaseLost(job.job_id, job.fencing_token)
            if sent:
                return endings.after_lost_delivery(job, self._options)
            return endings.after_release(job, False, "not delivered", self._options)

        async def release(assignment: Assignment) -> None:
            queue, ulid = assignment.job_id[QUEUE], assignment.job_id[ULID]
            try:
                # Not as the holder's own word: should the worker have it after all, its
                # completion must not be taken for a repeat of this.
                await self._end_as_holder(
                    queue, ulid, worker_id, assignment.fencing_token, decide, "lost"
                )
            except LeaseLost:
                pass  # It is to be left alone, or has ended otherwise.
            except JobwireError as error:
                log.warning("job not given back", job_id=assignment.job_id, error=error.message)

        # Side by side, so that they make few calls; the last one first, so that each finds its
        # place at the head of its route.
        await asyncio.gather(*map(release, reversed(assignments)))


def _after_confirmation(job: Job) -> Ending:
    if job.state is JobState.RUNNING:
        raise WrongState(
            f"nobody cancelled {job.job_id}: complete it with a result, a failure or a release",
            metadata={"state": job.state.name},
        )
    return endings.after_cancellation()

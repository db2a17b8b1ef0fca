"""The ends of attempts: the router's part that decides what becomes of a job and has it written.

Each end is decided by the pure operations on the job as it was read, and written only if the job
still is what it was; otherwise it is read and decided again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Set
from dataclasses import replace

import structlog

from jobwire_server.broker.lanes import Lanes
from jobwire_server.domain.background import Chores
from jobwire_server.domain.decisions import endings
from jobwire_server.domain.decisions.endings import Ending
from jobwire_server.domain.decisions.retention import retain_ended_ms
from jobwire_server.domain.errors import (
    JobNotFound,
    JobwireError,
    LeaseLost,
    StoreUnavailable,
    WrongState,
)
from jobwire_server.domain.model import (
    Assignment,
    Completed,
    Ended,
    Failure,
    Former,
    Job,
    JobState,
    Released,
    Worker,
    WorkerStatus,
)
from jobwire_server.domain.options import BrokerOptions, RetryDefaults
from jobwire_server.store.jobs import AttemptEnd, JobStore, Success
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.store.workers import LostWorker, WorkerStore

log = structlog.get_logger(__name__)

DECISIONS = 5
"""How often an ending is decided again because the job's state changed under it.

A running job's state changes once, to CANCELLING; more is a defect.
"""
TAKE_BACK_AT_ONCE = 200

Decide = Callable[[Job], Ending]
_UNDONE = StoreUnavailable("it is not known whether it was recorded; send it again")


class Attempts:
    """Ends attempts, for their holders and for the broker itself.

    Args:
        store: Where jobs are.
        workers: The registry.
        lanes_of: Finds the lanes of a queue.
        options: Budgets and retention.
        random_fraction: Returns numbers in [0, 1) for the jitter of backoffs.
        due_in: Takes a queue and the milliseconds until something is due there.
        settings: Of the queues.
        chores: Has jobs given back in the background.
    """

    def __init__(
        self,
        store: JobStore,
        workers: WorkerStore,
        lanes_of: Callable[[str], Lanes],
        options: BrokerOptions,
        random_fraction: Callable[[], float],
        due_in: Callable[[str, float], None],
        settings: QueueSettingsCache,
        chores: Chores,
    ) -> None:
        self._jobs = store
        self._workers = workers
        self._lanes_of = lanes_of
        self._options = options
        self._random = random_fraction
        self._due_in = due_in
        self._settings = settings
        self._chores = chores

    async def _retry_defaults(self, queue: str) -> RetryDefaults:
        """Returns what the unset retry fields of the queue's jobs mean now."""
        settings = await self._settings.get(queue)
        return endings.resolve(settings.retry, self._options.retry)

    async def _read(self, queue: str, ulid: str) -> Job:
        job = await self._lanes_of(queue).read_basic.one(ulid)
        if job is None:
            raise JobNotFound(f"{queue}-{ulid}")
        return job

    async def release_held(self, queue: str, worker_id: str, reason: str) -> int:
        """Returns what a worker that leaves still holds in one queue, as interruptions."""
        return await self._end_held(
            queue,
            worker_id,
            "lost",
            lambda job: endings.after_release(job, True, reason, self._options),
        )

    async def complete_many(
        self, worker_id: str, items: Sequence[Ended]
    ) -> list[Completed | JobwireError]:
        """Ends attempts over any queues; answers each with its outcome or why it was refused.

        Results go to the store as one batch for each queue; other ends are decided one by one, side
        by side.
        """
        outcomes: list[Completed | JobwireError] = [_UNDONE] * len(items)
        successes: dict[str, tuple[list[int], list[Success]]] = {}
        others: list[int] = []
        for at, (queue, ulid, token, outcome) in enumerate(items):
            if type(outcome) is bytes:
                group = successes.get(queue)
                if group is None:
                    group = successes[queue] = [], []
                group[0].append(at)
                group[1].append(Success(ulid, worker_id, token, outcome))
            else:
                others.append(at)

        async def succeed(queue: str, places: list[int], batch: list[Success]) -> None:
            try:
                answers = await self._lanes_of(queue).succeed.submit(batch)
            except JobwireError as error:
                answers = [error] * len(places)
            for at, answer in zip(places, answers, strict=True):
                outcomes[at] = answer

        async def end(at: int) -> None:
            try:
                outcomes[at] = await self.complete(worker_id, items[at])
            except JobwireError as error:
                outcomes[at] = error

        await asyncio.gather(
            *(succeed(queue, *group) for queue, group in successes.items()), *map(end, others)
        )
        return outcomes

    async def complete(self, worker_id: str, item: Ended) -> Completed:
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
            success = Success(ulid, worker_id, token, outcome)
            answer = await self._lanes_of(queue).succeed.one(success)
            if isinstance(answer, JobwireError):
                raise answer
            return answer
        decide = await self._decision(queue, outcome)
        return await self._end_as_holder(queue, ulid, worker_id, token, decide)

    async def _decision(self, queue: str, outcome: Failure | Released | None) -> Decide:
        if isinstance(outcome, Failure):
            defaults = await self._retry_defaults(queue)
            return lambda job: endings.after_failure(job, outcome, defaults, self._random)
        if isinstance(outcome, Released):
            started, reason = outcome.started, outcome.reason
            return lambda job: endings.after_release(job, started, reason, self._options)
        return _after_confirmation

    async def take_back_unnamed(
        self, queue: str, worker_id: str, keep: set[str], former: Former
    ) -> int:
        """Returns what a worker holds in a queue but does not know of.

        Args:
            queue: Its name.
            worker_id: The worker, which has just attached.
            keep: The ULIDs that it named.
            former: Who held them.
        """
        return await self._end_held(
            queue,
            worker_id,
            "lost",
            lambda job: endings.after_take_over(job, former, self._options),
            keep=keep,
        )

    async def _end_as_holder(
        self,
        queue: str,
        ulid: str,
        worker_id: str,
        fencing_token: int,
        decide: Decide,
        condition: str = "worker",
    ) -> Completed:
        lanes = self._lanes_of(queue)
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
            outcome = await lanes.end.one(AttemptEnd(held, condition, ending))
            if isinstance(outcome, JobwireError):
                raise outcome
            if outcome is not None:
                if outcome.next_attempt_at_ms:
                    self._due_in(queue, ending.backoff_ms)
                return outcome
        raise StoreUnavailable(f"{queue}-{ulid} changes faster than its ending can be decided")

    async def end_overdue(self, queue: str, overdue: list[tuple[str, str]]) -> None:
        """Ends attempts whose lease ran out, whose timeout or whose job's deadline passed, or whose
        grace of cancellation is over.
        """
        defaults = await self._retry_defaults(queue)
        jobs = await self._jobs.read(queue, [ulid for _, ulid in overdue], full=False)
        workers = await self._holders(overdue, jobs)
        ends = []
        for (condition, _), job in zip(overdue, jobs, strict=True):
            if job is None or not job.state.leased:
                continue
            if condition == "lease":
                ending = self._after_lapse(job, workers.get(job.worker_id))
            elif condition == "timeout":
                ending = endings.after_timeout(job, defaults, self._random)
            elif condition == "deadline":
                ending = endings.after_deadline(job)
            else:
                ending = endings.after_cancellation()
            ends.append(AttemptEnd(job, condition, ending))
        await self._apply(queue, ends)

    async def _holders(
        self, overdue: list[tuple[str, str]], jobs: Sequence[Job | None]
    ) -> dict[str, Worker]:
        """Returns the workers whose leases ran out, as far as they are known."""
        lapsed = [
            job.worker_id
            for (condition, _), job in zip(overdue, jobs, strict=True)
            if condition == "lease" and job is not None and job.state.leased
        ]
        if not lapsed:
            return {}
        found = await self._workers.read_many([*dict.fromkeys(lapsed)])
        return {worker.spec.worker_id: worker for worker in found}

    def _after_lapse(self, job: Job, worker: Worker | None) -> Ending:
        heard_ms, lease_ms = 0, self._options.lease_ms
        if worker is not None and worker.status is not WorkerStatus.LOST:
            heard_ms, lease_ms = worker.last_seen_at_ms, worker.spec.lease_ms or lease_ms
        cause = f"the lease of {job.worker_id} ran out"
        return endings.after_lapse(job, cause, heard_ms, lease_ms, self._options)

    async def take_back(self, worker: LostWorker, queue: str) -> int:
        """Returns what a lost worker holds in one queue."""
        cause = f"the worker {worker.worker_id} was lost"
        lease_ms = worker.lease_ms or self._options.lease_ms

        def decide(job: Job) -> Ending:
            if worker.unheard:
                why = f"nobody heard of {worker.worker_id} any more"
                return endings.after_lost_delivery(job, self._options, why)
            return endings.after_lapse(job, cause, worker.heard_at_ms, lease_ms, self._options)

        return await self._end_held(
            queue, worker.worker_id, "lost", decide, started_until_ms=worker.lost_at_ms
        )

    async def _end_held(
        self,
        queue: str,
        worker_id: str,
        condition: str,
        decide: Decide,
        started_until_ms: int | None = None,
        keep: Set[str] = frozenset(),
    ) -> int:
        """Ends every attempt that a worker holds in a queue; returns how many."""
        ulids = sorted(set(await self._jobs.held(queue, worker_id)) - keep)
        ended = 0
        for at in range(0, len(ulids), TAKE_BACK_AT_ONCE):
            jobs = await self._jobs.read(queue, ulids[at : at + TAKE_BACK_AT_ONCE], full=False)
            ends = [
                AttemptEnd(job, condition, decide(job))
                for job in jobs
                if job is not None
                and job.state.leased
                and job.worker_id == worker_id
                # A worker of the same name that registered since may hold jobs by now. What began
                # in times to come began before the clock was set back.
                and (
                    started_until_ms is None
                    or not started_until_ms < job.started_at_ms <= job.read_at_ms
                )
            ]
            ended += await self._apply(queue, ends)
        return ended

    async def _apply(self, queue: str, ends: list[AttemptEnd]) -> int:
        """Applies decisions; those that no longer fit are left to the next look.

        Returns how many were applied.
        """
        if not ends:
            return 0
        retention_ms = retain_ended_ms(await self._settings.get(queue), self._options)
        outcomes = await self._jobs.end_attempts(queue, ends, retention_ms)
        for end, outcome in zip(ends, outcomes, strict=True):
            if isinstance(outcome, Completed) and outcome.next_attempt_at_ms:
                self._due_in(queue, end.ending.backoff_ms)
        return sum(isinstance(outcome, Completed) for outcome in outcomes)

    def give_back(
        self,
        worker_id: str,
        assignments: Sequence[Assignment],
        claimed_after_ms: int = 0,
        *,
        sent: bool = False,
    ) -> None:
        """Returns jobs that never reached their worker, in the background; if that fails their
        leases end.

        Args:
            worker_id: Who was to have them.
            assignments: What it was to have.
            claimed_after_ms: Leaves those alone that were claimed up to this moment, Unix ms.
            sent: True if they were on their way, so that the worker may have had them.
        """
        if assignments:
            self._chores.begin(self._give_back(worker_id, assignments, claimed_after_ms, sent))

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
            queue, ulid = assignment.job_id[:-27], assignment.job_id[-26:]
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

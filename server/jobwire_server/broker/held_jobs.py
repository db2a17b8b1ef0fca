"""Jobs that workers hold and that the broker ends attempts of: their time is over, or their worker
was lost, has left, or came back without them.

Each end is decided by the pure decisions on the job as it was read, and written only if the job
still is what it was; what moved on meanwhile is left to the next look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from jobwire_server.broker.alarms import Alarms
from jobwire_server.domain.decisions import endings
from jobwire_server.domain.decisions.endings import Ending
from jobwire_server.domain.decisions.retention import retain_ended_ms
from jobwire_server.domain.model import Completed, Former, Job, Worker, WorkerStatus
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.attempts import EndToWrite
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.store.workers import LostWorker, WorkerStore

AT_ONCE = 200
"""Attempts of one script call."""

Decide = Callable[[Job], Ending]


class HeldJobs:
    """Ends attempts without their workers' word.

    Args:
        store: Where jobs are.
        workers: The registry.
        options: Budgets and retention.
        random_fraction: Returns numbers in [0, 1) for the jitter of backoffs.
        alarms: Told when a next attempt is due.
        settings: Of the queues.
    """

    def __init__(
        self,
        store: JobStore,
        workers: WorkerStore,
        options: BrokerOptions,
        random_fraction: Callable[[], float],
        alarms: Alarms,
        settings: QueueSettingsCache,
    ) -> None:
        self._jobs = store
        self._workers = workers
        self._options = options
        self._random = random_fraction
        self._alarms = alarms
        self._settings = settings

    async def end_overdue(self, queue: str, overdue: list[tuple[str, str]]) -> None:
        """End attempts whose lease ran out, whose timeout or whose job's deadline passed, or whose
        grace of cancellation is over.
        """
        settings = await self._settings.get(queue)
        defaults = endings.resolve(settings.retry, self._options.retry)
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
            ends.append(EndToWrite(job, condition, ending))
        await self._apply(queue, ends)

    async def _holders(
        self, overdue: list[tuple[str, str]], jobs: Sequence[Job | None]
    ) -> dict[str, Worker]:
        """Return the workers whose leases ran out, as far as they are known."""
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

    async def end_for_lost(self, worker: LostWorker, queue: str) -> int:
        """End what a lost worker holds in one queue; return how many jobs that were."""
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
        """End every attempt that a worker holds in a queue; return how many."""
        ulids = sorted(set(await self._jobs.held(queue, worker_id)) - keep)
        ended = 0
        for at in range(0, len(ulids), AT_ONCE):
            jobs = await self._jobs.read(queue, ulids[at : at + AT_ONCE], full=False)
            ends = [
                EndToWrite(job, condition, decide(job))
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

    async def _apply(self, queue: str, ends: list[EndToWrite]) -> int:
        """Apply decisions; those that no longer fit are left to the next look.

        Returns how many were applied.
        """
        if not ends:
            return 0
        retention_ms = retain_ended_ms(await self._settings.get(queue), self._options)
        outcomes = await self._jobs.end_attempts(queue, ends, retention_ms)
        for end, outcome in zip(ends, outcomes, strict=True):
            if isinstance(outcome, Completed) and outcome.next_attempt_at_ms:
                self._alarms.due_in(queue, end.ending.backoff_ms)
        return sum(isinstance(outcome, Completed) for outcome in outcomes)

    async def end_for_leaving(self, queue: str, worker_id: str, reason: str) -> int:
        """End what a worker that leaves still holds in one queue, as interruptions; return how many
        jobs that were.
        """
        return await self._end_held(
            queue,
            worker_id,
            "lost",
            lambda job: endings.after_release(job, True, reason, self._options),
        )

    async def end_unnamed(self, queue: str, worker_id: str, keep: set[str], former: Former) -> int:
        """End what a worker holds in a queue but does not know of; return how many jobs that were.

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

"""Claims: ClaimJob calls as demands on the dispatchers of their queues."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.errors import WrongState
from jobwire_server.domain.ids import ULID
from jobwire_server.domain.model import (
    Assignment,
    CancelNotice,
    Job,
    RecordFacts,
    WorkerSpec,
    WorkerStatus,
)
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.claims import ClaimStore
from jobwire_server.workers.broker_parts import Attempts, Due
from jobwire_server.workers.callers import Callers
from jobwire_server.workers.demand import OneShot
from jobwire_server.workers.dispatchers import Dispatchers
from jobwire_server.workers.known_workers import KnownWorkers
from jobwire_server.workers.waiting_calls import WaitingCalls

HOLD_MS = 1_000
"""How long a call that would wait is held of a worker that takes no jobs now. Answered at once, it
would come again at once, until the worker hears of that with its next heartbeat.
"""


class ClaimWish(NamedTuple):
    """What a worker asks for in a call."""

    worker_id: str
    queues: Sequence[str] = ()
    """Narrow its own; empty: all of them."""
    max_jobs: int = 1
    wait_ms: int = 0
    """How long to wait for a first job; 0: not at all."""
    job: tuple[str, str] | None = None
    """The queue and the ULID of the one job that it wants; None: whichever comes."""


class Handed(NamedTuple):
    """What a call brings to a worker."""

    assignments: Sequence[Assignment] = ()
    lease_ms: int = 0
    """Of each of the jobs."""
    cancellations: Sequence[CancelNotice] = ()
    """The jobs of the worker that somebody cancelled since it was told last, in any of its queues.
    """


class Claims:
    """Hands jobs to whoever asks for them in a call.

    Args:
        store: Where jobs are claimed.
        known: The workers.
        callers: Note that they live, and what they hold.
        waiting: Calls that wait.
        dispatchers: Bring jobs to them.
        options: Leases.
        attempts: Give back jobs that nobody took.
        due: Told when a lease ends.
    """

    def __init__(
        self,
        store: ClaimStore,
        known: KnownWorkers,
        callers: Callers,
        waiting: WaitingCalls,
        dispatchers: Dispatchers,
        options: BrokerOptions,
        attempts: Attempts,
        due: Due,
    ) -> None:
        self._jobs = store
        self._known = known
        self._callers = callers
        self._waiting = waiting
        self._dispatchers = dispatchers
        self._options = options
        self._attempts = attempts
        self._due = due
        self._draining = False

    def drain(self) -> None:
        """End the calls that wait with what they have; later ones get nothing."""
        self._draining = True
        self._waiting.interrupt_all()

    async def claim(
        self,
        worker_id: str,
        queues: Sequence[str],
        max_jobs: int,
        wait_ms: int,
        stop: Callable[[], bool] = lambda: False,
    ) -> tuple[list[Assignment], int]:
        """Lease up to `max_jobs` jobs that the worker may run, from its queues in turn.

        Args:
            worker_id: A registered worker.
            queues: Narrows its own; empty: all of them.
            max_jobs: 1 or more.
            wait_ms: How long to wait for a first job; 0: not at all.
            stop: Asked once before the wait; True ends it. Later `WaitingCalls.interrupt` does.

        Returns:
            The jobs, perhaps none, and their lease in milliseconds.

        Raises:
            WorkerNotFound: It never registered, was lost, or left.
        """
        spec, status = await self._known.get(worker_id)
        lease_ms = self._options.lease_of(spec)
        chosen = self._known.in_turn(worker_id, spec, queues)
        if self._draining or (wait_ms and stop()):
            return [], lease_ms
        if status is not WorkerStatus.READY or not chosen:
            await self._hold(spec, min(wait_ms, HOLD_MS))
            return [], lease_ms
        demand = OneShot(spec, lease_ms, max_jobs, chosen, patient=wait_ms > 0)
        dispatchers = [self._dispatchers.of(queue) for queue in chosen]
        self._waiting.add(demand)
        try:
            for dispatcher in dispatchers:
                dispatcher.offer(demand)
            with self._callers.present(worker_id):
                async with asyncio.timeout(wait_ms / 1000 if wait_ms else None):
                    await asyncio.shield(demand.answer)
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            # The caller is gone; what came for it in this very moment goes back.
            self._attempts.give_back(worker_id, demand.take())
            raise
        finally:
            self._waiting.discard(demand)
            for dispatcher in dispatchers:
                dispatcher.withdraw(demand)
        assignments = demand.take()
        if assignments:
            self._callers.moved(worker_id)
        return assignments, lease_ms

    async def _hold(self, spec: WorkerSpec, wait_ms: int) -> None:
        """Wait although there is nothing to wait for, or until the worker's status changes."""
        if not wait_ms:
            return
        demand = OneShot(spec, 0, 0, (), patient=True)
        self._waiting.add(demand)
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await demand.answer
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(demand)

    async def claim_job(
        self,
        worker_id: str,
        job: Job,
        facts: RecordFacts,
    ) -> tuple[Assignment, int]:
        """Lease one job by id to a worker that may run it.

        Args:
            worker_id: A registered worker.
            job: As it stood a moment ago.
            facts: What its record says.

        Raises:
            WorkerNotFound: It never registered, was lost, or left.
            JobNotFound: There is no such job.
            WrongState: The job is not PENDING, its queue is paused, or the worker does not serve
                it.
        """
        spec, status = await self._known.get(worker_id)
        queue = job.queue
        route = route_of(facts.operation, facts.requirements)
        if (
            not route.served_by(spec)
            or queue not in spec.queues
            or status is not WorkerStatus.READY
        ):
            raise WrongState(
                f"the worker {worker_id} does not serve {job.job_id}: the worker must be READY"
                f" and have its queue {queue},"
                f" its operation {facts.operation} and the labels that it requires",
                metadata={"state": job.state.name},
            )
        lease_ms = self._options.lease_of(spec)
        priority = facts.priority if job.priority is None else job.priority
        assignment = await self._jobs.claim_job(
            queue, job.job_id[ULID], worker_id, lease_ms, route.id, priority
        )
        self._due.due_in(queue, lease_ms)
        self._callers.moved(worker_id)
        return assignment, lease_ms

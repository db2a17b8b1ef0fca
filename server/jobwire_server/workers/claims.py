"""Claims: ClaimJob calls as demands on the dispatchers of their queues."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from jobwire_server.domain.decisions.retention import retain_ended_ms
from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.errors import WrongState
from jobwire_server.domain.model import (
    Assignment,
    CancelNotice,
    Job,
    NewJob,
    RecordFacts,
    WorkerSpec,
    WorkerStatus,
)
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store import keys
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.notices import Listener, Notices
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.workers.demand import OneShot
from jobwire_server.workers.dispatcher import QueueDispatcher
from jobwire_server.workers.known_workers import Directory

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
    """Hands jobs to whoever asks for them.

    Args:
        store: Where jobs are claimed.
        directory: The workers.
        notices: The store's channels.
        options: Leases and retention.
        give_back: Returns jobs that nobody took.
        due_in: Takes a queue and the milliseconds until something is due there.
        settings: Of the queues.
    """

    def __init__(
        self,
        store: JobStore,
        directory: Directory,
        notices: Notices,
        options: BrokerOptions,
        give_back: Callable[[str, Sequence[Assignment]], None],
        due_in: Callable[[str, float], None],
        settings: QueueSettingsCache,
    ) -> None:
        self._jobs = store
        self._directory = directory
        self._notices = notices
        self._options = options
        self.give_back = give_back
        self._due_in = due_in
        self._settings = settings
        self._dispatchers: dict[str, QueueDispatcher] = {}
        self._waiting: set[OneShot] = set()
        self._draining = False
        directory.on_status = self._follow

    def _follow(self, worker_id: str, status: WorkerStatus) -> None:
        """Ends the calls of a worker that takes no more jobs, or that takes jobs again."""
        self.interrupt({worker_id})

    def interrupt(self, worker_ids: set[str]) -> None:
        """Ends the calls of these workers that wait, with what they have."""
        for demand in [*self._waiting]:
            if demand.spec.worker_id in worker_ids and not demand.answer.done():
                demand.answer.set_result([])

    def drain(self) -> None:
        """Ends the calls that wait with what they have; later ones get nothing."""
        self._draining = True
        for demand in [*self._waiting]:
            if not demand.answer.done():
                demand.answer.set_result([])

    async def stop(self) -> None:
        """Ends the dispatchers."""
        self.drain()
        await asyncio.gather(*(dispatcher.stop() for dispatcher in self._dispatchers.values()))
        self._dispatchers.clear()

    def lease_ms(self, spec: WorkerSpec) -> int:
        """Returns the lease that each of the worker's jobs gets."""
        return spec.lease_ms or self._options.lease_ms

    async def claim(
        self,
        worker_id: str,
        queues: Sequence[str],
        max_jobs: int,
        wait_ms: int,
        stop: Callable[[], bool] = lambda: False,
    ) -> tuple[list[Assignment], int]:
        """Leases up to `max_jobs` jobs that the worker may run, from any of its queues.

        Args:
            worker_id: A registered worker.
            queues: Narrows its own; empty: all of them.
            max_jobs: 1 or more.
            wait_ms: How long to wait for a first job; 0: not at all.
            stop: Asked once before the wait; True ends it. Later `interrupt` does.

        Returns:
            The jobs, perhaps none, and their lease in milliseconds.

        Raises:
            WorkerNotFound: It never registered, was lost, or left.
        """
        spec, status = await self._directory.get(worker_id)
        lease_ms = self.lease_ms(spec)
        chosen = tuple(queue for queue in spec.queues if not queues or queue in queues)
        if self._draining or (wait_ms and stop()):
            return [], lease_ms
        if status is not WorkerStatus.READY or not chosen:
            await self._hold(spec, min(wait_ms, HOLD_MS))
            return [], lease_ms
        demand = OneShot(spec, lease_ms, max_jobs, chosen, patient=wait_ms > 0)
        dispatchers = [self.dispatcher(queue) for queue in chosen]
        self._waiting.add(demand)
        try:
            for dispatcher in dispatchers:
                dispatcher.offer(demand)
            with self._directory.present(worker_id):
                async with asyncio.timeout(wait_ms / 1000 if wait_ms else None):
                    await asyncio.shield(demand.answer)
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            # The caller is gone; what came for it in this very moment goes back.
            self.give_back(worker_id, demand.take())
            raise
        finally:
            self._waiting.discard(demand)
            for dispatcher in dispatchers:
                dispatcher.withdraw(demand)
        return demand.take(), lease_ms

    async def _hold(self, spec: WorkerSpec, wait_ms: int) -> None:
        """Waits although there is nothing to wait for, or until the worker's status changes."""
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
        """Leases one job by id to a worker that may run it.

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
        spec, status = await self._directory.get(worker_id)
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
        lease_ms = self.lease_ms(spec)
        assignment = await self._jobs.claim_job(
            queue, job.job_id[-26:], worker_id, lease_ms, route.id, facts.priority
        )
        self._due_in(queue, lease_ms)
        return assignment, lease_ms

    def expect(self, queue: str, jobs: Sequence[NewJob]) -> None:
        """Jobs are on their way to the store; workers of this server that wait look for them."""
        dispatcher = self._dispatchers.get(queue)
        if dispatcher is not None:
            dispatcher.expect(
                job.route.id for job in jobs if not job.delay_ms and not job.run_at_ms
            )

    def dispatcher(self, queue: str) -> QueueDispatcher:
        """Returns the dispatcher of a queue."""
        dispatcher = self._dispatchers.get(queue)
        if dispatcher is None:
            channel = keys.ready_channel(queue)

            async def subscribe() -> None:
                await self._notices.listen(channel, Listener(made.notice, made.look_again))

            async def unsubscribe() -> None:
                await self._notices.silence(channel)

            made = dispatcher = self._dispatchers[queue] = QueueDispatcher(
                queue,
                self._jobs,
                partial(self._retention_ms, queue),
                subscribe,
                unsubscribe,
                self.give_back,
                self._forget,
            )
        return dispatcher

    def _retention_ms(self, queue: str) -> int:
        return retain_ended_ms(self._settings.known(queue), self._options)

    def _forget(self, queue: str) -> None:
        self._dispatchers.pop(queue, None)

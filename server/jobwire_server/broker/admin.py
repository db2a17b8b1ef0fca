"""What operators see of workers and queues, and change of queues."""

from __future__ import annotations

from dataclasses import replace

from jobwire_server.domain.errors import QueueNotFound
from jobwire_server.domain.model import LeaseRef, Queue, QueueChanges, Worker
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.store.workers import WorkerStore


class Operators:
    """Reads workers and queues, and sets queues. Raises StoreUnavailable."""

    def __init__(
        self,
        jobs: JobStore,
        queues: QueueStore,
        workers: WorkerStore,
        settings: QueueSettingsCache,
    ) -> None:
        self._jobs = jobs
        self._queues = queues
        self._workers = workers
        self._settings = settings

    async def list_workers(self, after: str, most: int) -> list[Worker]:
        """Returns up to `most` workers whose ids sort after `after`, with the number of jobs they
        hold.
        """
        workers = await self._workers.page(after, most)
        return [await self._with_leases(worker) for worker in workers]

    async def get_worker(self, worker_id: str) -> Worker | None:
        """Returns a worker with its leases, None if it is not known."""
        worker = await self._workers.read(worker_id)
        return await self._with_leases(worker) if worker else None

    async def _with_leases(self, worker: Worker) -> Worker:
        leases = []
        for queue in worker.spec.queues:
            ulids = sorted(await self._jobs.held(queue, worker.spec.worker_id))
            for job in await self._jobs.read(queue, ulids, full=False) if ulids else []:
                if job is not None and job.worker_id == worker.spec.worker_id:
                    leases.append(LeaseRef(job.job_id, job.fencing_token))
        return replace(worker, held_jobs=len(leases), leases=tuple(leases))

    async def list_queues(self, after: str, most: int) -> list[Queue]:
        """Returns up to `most` queues whose names sort after `after`."""
        names = await self._queues.names(after, most)
        return [await self._queues.read(name, detail=False) for name in names]

    async def get_queue(self, queue: str) -> Queue:
        """Returns a queue with its oldest ready job and its samples. Raises QueueNotFound."""
        if not await self._queues.exists(queue):
            raise QueueNotFound(queue)
        return await self._queues.read(queue, detail=True)

    async def configure_queue(self, queue: str, changes: QueueChanges) -> Queue:
        """Changes settings of a queue; they hold here at once, on other servers within a tick.

        Raises:
            QueueNotFound: No job was ever submitted to it.
        """
        if not await self._queues.exists(queue):
            raise QueueNotFound(queue)
        if changes:
            await self._queues.configure(queue, changes)
            await self._settings.changed(queue)
        return await self._queues.read(queue, detail=True)

    async def set_paused(self, queue: str, paused: bool) -> Queue:
        """Stops or starts the deliveries of a queue. Raises QueueNotFound."""
        if not await self._queues.exists(queue):
            raise QueueNotFound(queue)
        await self._queues.set_paused(queue, paused)
        return await self._queues.read(queue, detail=True)

"""What operators see of workers and queues, and change of queues."""

from __future__ import annotations

from dataclasses import replace

from jobwire_server.domain.errors import QueueNotFound, WorkerNotFound
from jobwire_server.domain.model import LeaseRef, Queue, QueueChanges, Worker, WorkerStatus
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.store.tokens import Tokens
from jobwire_server.store.workers import WorkerStore

MAX_CALLS = 256
"""Calls of the store for one page, roughly: it ends early then."""


class Operators:
    """Reads workers and queues, and sets queues. Raises StoreUnavailable."""

    def __init__(
        self,
        jobs: JobStore,
        queues: QueueStore,
        workers: WorkerStore,
        settings: QueueSettingsCache,
        tokens: Tokens,
    ) -> None:
        self._jobs = jobs
        self._queues = queues
        self._workers = workers
        self._settings = settings
        self._tokens = tokens

    async def list_workers(
        self,
        page_size: int,
        page_token: str = "",
        *,
        queue: str = "",
        status: WorkerStatus | None = None,
    ) -> tuple[list[Worker], str]:
        """Return a page of workers by id, and the token of the next, '' at the end.

        Args:
            page_size: The most workers that are looked at, 1 or more.
            page_token: '' for the first page.
            queue: Only workers that serve it; '': any.
            status: Only workers that have it; None: any.

        Raises:
            BadPageToken: The token is of another listing.
        """
        scope = ("workers", queue, str(int(status or 0)))
        after = await self._after(page_token, *scope)
        workers = await self._workers.page(after, page_size)
        wanted: list[Worker] = []
        calls = looked = 0
        for worker in workers:
            if calls >= MAX_CALLS:
                break
            looked += 1
            if (not queue or queue in worker.spec.queues) and status in (None, worker.status):
                wanted.append(await self._with_leases(worker))
                calls += len(worker.spec.queues)
        if looked < page_size and looked == len(workers):
            return wanted, ""
        last = workers[looked - 1].spec.worker_id
        return wanted, (await self._tokens.seal(*scope)).write(last)

    async def workers_after(self, worker_id: str, most: int) -> list[Worker]:
        """Return up to so many workers whose ids sort behind another, with their leases."""
        workers = await self._workers.page(worker_id, most)
        return [await self._with_leases(worker) for worker in workers]

    async def get_worker(self, worker_id: str) -> Worker:
        """Return a worker with its leases. Raises WorkerNotFound."""
        worker = await self.find_worker(worker_id)
        if worker is None:
            raise WorkerNotFound(worker_id)
        return worker

    async def find_worker(self, worker_id: str) -> Worker | None:
        """Return a worker with its leases, None if it is not known."""
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

    async def list_queues(self, page_size: int, page_token: str = "") -> tuple[list[Queue], str]:
        """Return a page of queues by name, and the token of the next, '' at the end.

        Raises:
            BadPageToken: The token is of another listing.
        """
        page_size = min(page_size, MAX_CALLS)
        names = await self._queues.names(await self._after(page_token, "queues"), page_size)
        queues = [await self._queues.read(name, detail=False) for name in names]
        if len(names) < page_size:
            return queues, ""
        return queues, (await self._tokens.seal("queues")).write(names[-1])

    async def get_queue(self, queue: str) -> Queue:
        """Return a queue with its oldest ready job and its samples. Raises QueueNotFound."""
        if not await self._queues.exists(queue):
            raise QueueNotFound(queue)
        return await self._queues.read(queue, detail=True)

    async def configure_queue(self, queue: str, changes: QueueChanges) -> Queue:
        """Change settings of a queue; they hold here at once, on other servers within a tick.

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
        """Stop or start the deliveries of a queue. Raises QueueNotFound."""
        if not await self._queues.exists(queue):
            raise QueueNotFound(queue)
        await self._queues.set_paused(queue, paused)
        return await self._queues.read(queue, detail=True)

    async def _after(self, page_token: str, *scope: str) -> str:
        """Return what the page before ended with, '' for the first one."""
        return await self._tokens.read(page_token, *scope) if page_token else ""

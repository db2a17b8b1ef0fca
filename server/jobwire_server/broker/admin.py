"""What operators see of workers and queues, and change of queues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jobwire_server.broker.open_queues import OpenQueues
from jobwire_server.domain.errors import (
    ChangedMeanwhile,
    InvalidRequest,
    QueueNotFound,
    Violation,
    WorkerNotFound,
)
from jobwire_server.domain.model import (
    LeaseRef,
    Queue,
    QueueChanges,
    RetryChanges,
    RetryPolicy,
    Worker,
    WorkerSpec,
    WorkerStatus,
)
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.reads import AT_ONCE
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.store.tokens import Tokens
from jobwire_server.store.workers import WorkerStore

MAX_CALLS = 256
"""Calls of the store for one page, roughly: it ends early then."""
NEW_REVISION = 1
"""Of the settings of a queue that nobody configured."""


PAGE_BYTES = 2 << 20
"""Of the descriptions of workers on one page, roughly: it ends early then."""


class Operators:
    """Reads workers and queues, and sets queues. Raises StoreUnavailable."""

    def __init__(
        self,
        jobs: JobStore,
        queues: QueueStore,
        workers: WorkerStore,
        settings: QueueSettingsCache,
        tokens: Tokens,
        open_queues: OpenQueues,
    ) -> None:
        self._open_queues = open_queues
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
        calls = looked = told_bytes = 0
        for worker in workers:
            if calls >= MAX_CALLS or told_bytes >= PAGE_BYTES:
                break
            looked += 1
            if (not queue or queue in worker.spec.queues) and status in (None, worker.status):
                wanted.append(await self._with_leases(worker))
                calls += len(worker.spec.queues) + wanted[-1].held_jobs // AT_ONCE
                told_bytes += _size(worker.spec)
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

    async def moved(self, worker_ids: Sequence[str]) -> tuple[list[Worker], Sequence[str]]:
        """Return these workers without leases, and the ids of those that are to be read later.

        How many jobs a worker on a stream holds is in its counters; for others the store counts.
        """
        found: list[Worker] = []
        calls = 0
        workers = await self._workers.read_many(worker_ids)
        for at, worker in enumerate(workers):
            if worker.attached:
                found.append(worker)
            elif calls >= MAX_CALLS:
                return found, [left.spec.worker_id for left in workers[at:]]
            else:
                found.append(replace(await self._with_leases(worker), leases=()))
                calls += len(worker.spec.queues)
        return found, ()

    async def _with_leases(self, worker: Worker) -> Worker:
        leases = []
        for queue in worker.spec.queues:
            ulids = sorted(await self._jobs.held(queue, worker.spec.worker_id))
            for job in await self._jobs.read_bare(queue, ulids):
                if job.worker_id == worker.spec.worker_id:
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

    async def configure_queue(
        self,
        queue: str,
        changes: QueueChanges,
        retry: RetryChanges | None = None,
        *,
        revision: int = 0,
        create: bool = False,
    ) -> Queue:
        """Change settings of a queue; they hold here at once, on other servers within a tick.

        Args:
            queue: Its name.
            changes: The settings.
            retry: Fields of its retry settings; the others of them stay.
            revision: Only if the settings still are at this one; 0: whatever it is.
            create: Make the queue if there is none.

        Raises:
            QueueNotFound: There is none.
            ChangedMeanwhile: Its settings are at another revision; nothing was changed.
            InvalidRequest: Its retry settings would contradict themselves.
            TooManyQueues: There are as many as there may be.
        """
        exists = await self._queues.exists(queue)
        if not exists and not create:
            raise QueueNotFound(queue)
        if not exists and revision > NEW_REVISION:
            raise _changed(queue, revision, NEW_REVISION)
        while True:
            made_from = revision
            if retry:
                settings, present = await self._queues.revised_settings(queue)
                made_from = revision or present
                changes = {**changes, "retry": changed_policy(settings.retry, retry)}
            if not exists:
                await self._open_queues.open(queue)
                exists = True
            if not (changes or revision) or await self._queues.configure(queue, changes, made_from):
                break
            if revision:
                _, present = await self._queues.revised_settings(queue)
                raise _changed(queue, revision, present)
        if changes:
            await self._settings.changed(queue)
        return await self._queues.read(queue, detail=True)

    async def set_paused(self, queue: str, paused: bool, *, create: bool = False) -> Queue:
        """Stop or start the deliveries of a queue; `create` makes it if there is none.

        Raises:
            QueueNotFound: There is none.
            TooManyQueues: There are as many as there may be.
        """
        if not await self._queues.exists(queue):
            if not create:
                raise QueueNotFound(queue)
            await self._open_queues.open(queue)
        await self._queues.set_paused(queue, paused)
        return await self._queues.read(queue, detail=True)

    async def _after(self, page_token: str, *scope: str) -> str:
        """Return what the page before ended with, '' for the first one."""
        return await self._tokens.read(page_token, *scope) if page_token else ""


def changed_policy(policy: RetryPolicy | None, changes: RetryChanges) -> RetryPolicy | None:
    """Return a retry policy with some fields changed, None for one that says nothing.

    Raises:
        InvalidRequest: It would contradict itself.
    """
    changed = replace(policy or RetryPolicy(), **changes)
    shortest, longest = changed.initial_backoff_ms, changed.max_backoff_ms
    if shortest is not None and longest is not None and longest < shortest:
        text = (
            f"must not be below initial_backoff: the queue would have {shortest} ms, and"
            f" {longest} ms at most; change both"
        )
        raise InvalidRequest([Violation("config.retry.max_backoff", text)])
    return None if changed == RetryPolicy() else changed


def _changed(queue: str, revision: int, present: int) -> ChangedMeanwhile:
    return ChangedMeanwhile(
        f"the settings of {queue} are at revision {present}, not {revision}: read the queue again,"
        " and repeat the change if it is still wanted",
        metadata={"queue": queue, "revision": str(present)},
    )


def _size(spec: WorkerSpec) -> int:
    names = (*spec.queues, *spec.operations, *spec.labels, *spec.labels.values())
    return sum(map(len, names))

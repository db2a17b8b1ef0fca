"""The router: the one public API under every transport.

Nothing else creates a job or changes the state of one. Each method hands on to the part that does
it; pure decisions say what is to happen and the store makes it so. It knows no gRPC and no protos.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import structlog

from jobwire_server.broker.submissions import Submission
from jobwire_server.broker.wiring import Parts
from jobwire_server.broker.worker_calls import Beat
from jobwire_server.domain.decisions.filters import JobFilter
from jobwire_server.domain.errors import JobNotFound, JobwireError
from jobwire_server.domain.ids import job_id_of
from jobwire_server.domain.model import (
    Completed,
    Completion,
    Job,
    Queue,
    Renewal,
    Worker,
    WorkerReport,
    WorkerSpec,
    WorkerStatus,
)
from jobwire_server.watch.job_watch import EVERYTHING, JobCourse, WatchWish
from jobwire_server.watch.queue_watch import CaughtUp
from jobwire_server.workers.claims import ClaimWish, Handed
from jobwire_server.workers.frames import Attach
from jobwire_server.workers.session import WorkerSession

log = structlog.get_logger(__name__)

TIME_PATIENCE_S = 1.0
"""How long a start waits for the store's time; clocks of queues refresh it."""


class Router:
    """Every operation of the broker. Safe to call from many tasks of one event loop.

    Every method may raise StoreUnavailable, and those that write ServerBusy.

    Args:
        parts: What it is made of.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.options = parts.options
        self.server_id = parts.server_id
        self.condition = parts.condition
        self.clock = parts.clock
        self.new_jobs = parts.new_jobs
        """Makes jobs of what was checked."""
        self.submissions = parts.submissions
        """How jobs get into the store."""
        self.schedules = parts.schedules
        """Recurring jobs."""
        self.bulk = parts.bulk
        """What is done to many jobs at once."""
        self.listing = parts.listing
        """Pages of a queue's jobs."""
        self.operators = parts.operators
        """Workers and queues, as operators see and set them."""

        self.deletions = parts.deletions
        """Queues go."""
        self.producers = parts.producers
        """The producers' streams."""

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Begin the background loops. Does not fail if the store is away."""
        parts = self._parts
        await self._ask_store()
        await parts.notices.start()
        parts.callers.start()
        parts.job_watch.start()
        parts.reaper.start()
        parts.announcements.start()
        parts.streams.start()
        parts.producers.start()

    async def _ask_store(self) -> None:
        """Ask the store for the time, before anything is stamped or checked by this machine's, and
        for the key of tokens.
        """
        try:
            async with asyncio.timeout(TIME_PATIENCE_S):
                # Of any queue, there or not: every look at one brings the time along.
                queue = await self._parts.queues.read("default", detail=False)
                self.clock.told(queue.now_ms)
                await self._parts.tokens.seal()
        except (JobwireError, TimeoutError):
            log.debug("the store did not tell its time or its key of tokens yet")

    async def drain(self, deadline_s: float = 30.0) -> None:
        """End long polls with what they have, watch streams with ServerDraining, and send the
        workers on streams to other servers.

        Args:
            deadline_s: When their streams are ended at the latest.
        """
        parts = self._parts
        # Before submissions are refused, so that producers know where to go with them.
        parts.producers.drain(deadline_s)
        parts.submissions.drain()
        parts.registration.drain()
        parts.claims.drain()
        parts.job_watch.drain()
        parts.bulk.drain()
        parts.streams.drain(deadline_s)

    async def stop(self) -> None:
        """End everything; tolerates never started."""
        parts = self._parts
        await self.drain()
        await parts.reaper.stop()
        await parts.streams.stop()
        await parts.producers.stop()
        await parts.announcements.stop()
        await parts.clocks.stop()
        parts.claims.drain()
        await parts.dispatchers.stop()
        # Before the store is closed.
        await parts.tasks.finish()
        await parts.job_watch.stop()
        await parts.callers.stop()
        await parts.notices.stop()

    # ------------------------------------------------------------------ jobs

    async def get_job(self, queue: str, ulid: str, *, full: bool = True) -> Job:
        """Return a job as it stands.

        Raises:
            JobNotFound: There is none.
        """
        lanes = self._parts.lanes.of(queue)
        job = await (lanes.read if full else lanes.read_basic).one(ulid)
        if job is None:
            raise JobNotFound(job_id_of(queue, ulid))
        return job

    async def cancel_job(self, queue: str, ulid: str, reason: str) -> Job:
        """Ask for the end of a job; return it as it stands then.

        Raises:
            JobNotFound: There is none.
            WrongState: It has finished otherwise.
        """
        await self._parts.cancellations.cancel(queue, ulid, reason)
        return await self.get_job(queue, ulid, full=False)

    async def retry_job(
        self, queue: str, ulid: str, reason: str, delay_ms: int, request_id: str = ""
    ) -> Job:
        """Put a job back after its end (a redrive), as `Bulk.retry_one`."""
        return await self.bulk.retry_one(queue, ulid, reason, delay_ms, request_id)

    def run_job(
        self, submission: Submission, wish: WatchWish, *, cancel_on_disconnect: bool = False
    ) -> JobCourse:
        """Submit a job and yield its course, as `JobRuns.run`."""
        return self._parts.runs.run(submission, wish, cancel_on_disconnect=cancel_on_disconnect)

    # --------------------------------------------------------------- watching

    def watch_job(self, queue: str, ulid: str, wish: WatchWish = EVERYTHING) -> JobCourse:
        """Yield the job and its output, as `JobWatch.watch`."""
        return self._parts.job_watch.watch(queue, ulid, wish)

    def watch_jobs(
        self, wanted: JobFilter, *, full: bool = False, cursor: str = "", only_changes: bool = False
    ) -> AsyncIterator[tuple[Job | CaughtUp | None, str]]:
        """Yield the jobs of a queue that a filter lets through, as `QueueWatch.watch`."""
        watch = self._parts.queue_watch.watch
        return watch(wanted, full=full, cursor=cursor, only_changes=only_changes)

    def watch_workers(self, queue: str) -> AsyncIterator[Worker | CaughtUp | str | None]:
        """Yield the workers, then each that changes, as `AdminWatch.watch_workers`."""
        return self._parts.admin_watch.watch_workers(queue)

    def watch_queues(self, names: Sequence[str], interval_s: float) -> AsyncIterator[list[Queue]]:
        """Yield queues that changed, as `AdminWatch.watch_queues`."""
        return self._parts.admin_watch.watch_queues(names, interval_s)

    # --------------------------------------------------------------- workers

    async def register_worker(self, spec: WorkerSpec, instance: str = "") -> None:
        """Make a worker known and READY, as `Registration.register`."""
        await self._parts.registration.register(spec, instance)

    async def deregister_worker(self, worker_id: str, instance: str = "") -> int:
        """End a worker, as `Registration.deregister`."""
        return await self._parts.registration.deregister(worker_id, instance=instance)

    async def set_worker_status(
        self,
        worker_id: str,
        status: WorkerStatus | None,
        told: Mapping[str, str] | None = None,
        instance: str = "",
    ) -> WorkerStatus:
        """Change a worker's status and what it tells, as `KnownWorkers.set_status`."""
        return await self._parts.known.set_status(worker_id, status, told, instance)

    async def drain_worker(self, worker_id: str) -> Worker:
        """Let a worker finish and leave; return it. Raises WorkerNotFound."""
        await self.set_worker_status(worker_id, WorkerStatus.DRAINING)
        return await self.operators.get_worker(worker_id)

    def lease_ms(self, spec: WorkerSpec) -> int:
        """Return the lease that each of the worker's jobs gets."""
        return self.options.lease_of(spec)

    def heartbeat_ms(self, spec: WorkerSpec) -> int:
        """Return how often a worker that makes calls is to send heartbeats."""
        return self.options.call_heartbeat_ms(spec)

    @property
    def stuck_handlers(self) -> int:
        """Handlers of this server's workers that go on although they were told to stop."""
        return self._parts.streams.stuck + self._parts.known.stuck

    async def attach_worker(self, attach: Attach) -> WorkerSession:
        """Begin a worker's stream, as `Streams.attach`."""
        return await self._parts.streams.attach(attach)

    async def release_session(self, session: WorkerSession) -> None:
        """End a worker's stream."""
        await self._parts.streams.release(session)

    # -------------------------------------------------------------- attempts

    async def claim(self, wish: ClaimWish) -> Handed:
        """Lease jobs to a worker, and tell it of cancellations, as `WorkerCalls.claim`."""
        return await self._parts.worker_calls.claim(wish)

    async def claim_next(self, wish: ClaimWish) -> Handed:
        """Lease jobs behind a completion, as `WorkerCalls.claim_next`."""
        return await self._parts.worker_calls.claim_next(wish)

    async def report(self, worker_id: str, item: WorkerReport) -> Renewal:
        """Record progress, output and a checkpoint, and renew the lease, as `Reports.report`."""
        return await self._parts.reports.report(worker_id, item)

    async def complete(self, worker_id: str, item: Completion) -> Completed:
        """End an attempt, as `Attempts.complete`."""
        return await self._parts.worker_calls.complete(worker_id, item)

    async def heartbeat(
        self, worker_id: str, leases: Sequence[tuple[str, str, int]], stuck: int | None = None
    ) -> Beat:
        """Renew the leases given as (queue, ULID, fencing token), as `WorkerCalls.heartbeat`."""
        return await self._parts.worker_calls.heartbeat(worker_id, leases, stuck)

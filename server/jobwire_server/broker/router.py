"""The router: the one public API under every transport.

Nothing else creates a job or changes the state of one. It asks the pure operations what is to
happen and the store to make it so; it knows neither gRPC nor the contract's messages.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

import structlog

from jobwire_server.broker.admin import Operators
from jobwire_server.broker.attempts import Attempts
from jobwire_server.broker.bulk import Bulk
from jobwire_server.broker.listing import JobListing
from jobwire_server.broker.new_jobs import NewJobs
from jobwire_server.broker.queue_set import QueueSet
from jobwire_server.broker.run_job import JobRuns
from jobwire_server.broker.schedules import Schedules
from jobwire_server.broker.submissions import Submission, Submissions
from jobwire_server.domain.background import Chores
from jobwire_server.domain.decisions.filters import JobFilter
from jobwire_server.domain.errors import (
    JobNotFound,
    JobwireError,
    LeaseLost,
    QueueNotFound,
    ServerDraining,
)
from jobwire_server.domain.ids import UlidFactory
from jobwire_server.domain.model import (
    Completed,
    Ended,
    Job,
    JobState,
    NewJob,
    OutputPlace,
    Queue,
    Renewal,
    Reported,
    Worker,
    WorkerSpec,
    WorkerStatus,
)
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.records import RecordCodec
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.store.activity import Activity
from jobwire_server.store.bulk import BulkStore
from jobwire_server.store.cancels import CancelStore
from jobwire_server.store.connection.condition import StoreCondition
from jobwire_server.store.connection.connect import Connection
from jobwire_server.store.group_commit import Backlog
from jobwire_server.store.jobs import JobStore, Report
from jobwire_server.store.notices import Notices
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.runner import ScriptRunner
from jobwire_server.store.schedules import ScheduleStore
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.store.upkeep import UpkeepStore
from jobwire_server.store.workers import WorkerStore
from jobwire_server.watch.admin_watch import Overview
from jobwire_server.watch.job_watch import EVERYTHING, Hub, WatchWish
from jobwire_server.watch.queue_watch import CaughtUp, QueueFeed
from jobwire_server.watch.watched_job import JobEvent, OutputEvent
from jobwire_server.workers.cancel_notices import Polls
from jobwire_server.workers.claims import Claims, ClaimWish, Handed
from jobwire_server.workers.frames import Attach
from jobwire_server.workers.known_workers import Directory
from jobwire_server.workers.leases import RENEWALS_A_LEASE
from jobwire_server.workers.reaper import Reaper
from jobwire_server.workers.session import WorkerSession
from jobwire_server.workers.streams import Roster

log = structlog.get_logger(__name__)

Result = TypeVar("Result")

HEARTBEAT_CALLS_MS = 2_000
"""Calls cost more than frames, so that workers which make them are heard of less often."""
TIME_PATIENCE_S = 1.0
"""How long a start waits for the store's time; the keepers of queues tell it later."""


class Router:
    """Every operation of the broker. Safe to call from many tasks of one event loop.

    Every method may raise StoreUnavailable, and those that write ServerBusy.

    Args:
        connection: The store.
        options: How jobs and workers are treated.
        records: Reads and writes records.
        server_id: Unique among live servers.
        random_fraction: Returns numbers in [0, 1) for the jitter of backoffs.
        moments_settled: Told how many moments of schedules were `submitted`, `skipped`, `missed`.
        condition: Of the store, kept by whoever watches it; None: it is taken to be well.
    """

    def __init__(
        self,
        connection: Connection,
        options: BrokerOptions,
        records: RecordCodec,
        server_id: str,
        *,
        random_fraction: Callable[[], float] = random.random,
        moments_settled: Callable[[str, int], None] = lambda outcome, count: None,
        condition: StoreCondition | None = None,
    ) -> None:
        self.options = options
        self.server_id = server_id
        self.condition = condition or StoreCondition(connection.address)
        self.clock = StoreClock()
        self.new_ulid = UlidFactory(self.clock.now_ms)
        self._chores = Chores()
        activity = Activity()
        self._runner = ScriptRunner(
            connection.client,
            wait_replicas=options.wait_replicas,
            wait_timeout_ms=options.wait_timeout_ms,
            address=connection.address,
            activity=activity,
        )
        self._jobs = JobStore(self._runner, server_id)
        self._upkeep = UpkeepStore(self._runner)
        self._queues = QueueStore(self._runner)
        self._workers = WorkerStore(self._runner, server_id)
        self._backlog = backlog = Backlog(
            options.limits.max_queued_requests, options.limits.max_queued_bytes
        )
        self._notices = Notices(connection)
        self._settings = QueueSettingsCache(self._queues.settings)
        self._set = QueueSet(
            self._jobs,
            self._upkeep,
            self._queues,
            options,
            backlog,
            self.clock,
            self._expect,
            self._settings,
            activity,
        )
        self._attempts = Attempts(
            self._jobs,
            self._workers,
            self._set.lanes,
            options,
            random_fraction,
            self._set.due_in,
            self._settings,
            self._chores,
        )
        self.schedules = Schedules(
            ScheduleStore(self._runner),
            self._set,
            self._settings,
            options,
            self.new_ulid,
            moments_settled,
            self.condition,
            records,
        )
        self.submissions = Submissions(
            records,
            self._set,
            self.condition,
            backlog,
            options.limits,
            self.clock,
        )
        """How jobs get into the store."""
        self.new_jobs = NewJobs(records, self.clock, self.new_ulid)
        """Makes jobs of what was checked."""
        self._records = records
        self._bulk = Bulk(
            self._jobs, BulkStore(self._runner), self._queues, self._set, options, records
        )
        self.listing = JobListing(self._jobs, self._queues, records)
        """Pages of a queue's jobs."""
        self.operators = Operators(self._jobs, self._queues, self._workers, self._settings)
        """Workers and queues, as operators see and set them."""
        self._directory = Directory(self._workers, backlog)
        self._hub = Hub(self._jobs, self._notices, options.bookmark_ms / 1000)
        self._feed = QueueFeed(self._hub, self._jobs, records)
        self._runs = JobRuns(self.submissions, self._set, self._hub, self._chores)
        self._overview = Overview(
            self._hub,
            self._notices,
            self._queues,
            self.operators,
        )
        self._reaper = Reaper(self._workers, options, self._attempts.take_back)
        self._claims = Claims(
            self._jobs,
            self._directory,
            self._notices,
            options,
            self._attempts.give_back,
            self._set.due_in,
            self._settings,
        )
        self._polls = Polls(self._claims, self._directory, CancelStore(self._runner), self._notices)
        self._roster = Roster(
            self._workers,
            self._directory,
            self._notices,
            options,
            self.clock,
            server_id,
            lease_ms=self.lease_ms,
            dispatcher=self._claims.dispatcher,
            complete=self._attempts.complete_many,
            report=self._report_many,
            renew=self._renew,
            give_back=self._attempts.give_back,
            take_back=self._attempts.take_back_unnamed,
            release_all=self.deregister_worker,
            sweep=self._reaper.sweep,
        )
        self._draining = False

    def _expect(self, queue: str, jobs: Sequence[NewJob]) -> None:
        self._claims.expect(queue, jobs)

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Begins the background loops. Does not fail if the store is away."""
        await self._learn_time()
        await self._notices.start()
        self._directory.start()
        self._hub.start()
        self._reaper.start()
        self._set.start(self._attempts.end_overdue, self.schedules.fire_due)
        self._roster.start()

    async def _learn_time(self) -> None:
        """Asks the store for the time, before anything is stamped or checked by this machine's."""
        try:
            async with asyncio.timeout(TIME_PATIENCE_S):
                # Of any queue, there or not: every look at one brings the time along.
                self.clock.told((await self._queues.read("default", detail=False)).now_ms)
        except (JobwireError, TimeoutError):
            log.debug("the store's time is not known yet")

    async def drain(self, deadline_s: float = 30.0) -> None:
        """Ends long polls with what they have, watch streams with ServerDraining, and sends the
        workers on streams to other servers.

        Args:
            deadline_s: When their streams are ended at the latest.
        """
        self._draining = True
        self.submissions.drain()
        self._claims.drain()
        self._hub.drain()
        self._bulk.drain()
        self._roster.drain(deadline_s)

    async def stop(self) -> None:
        """Ends everything; tolerates never started."""
        await self.drain()
        await self._reaper.stop()
        await self._roster.stop()
        await self._set.stop()
        await self._claims.stop()
        # Before the store is closed.
        await self._chores.finish()
        await self._hub.stop()
        await self._directory.stop()
        await self._notices.stop()

    # ------------------------------------------------------------------ jobs

    async def get_job(self, queue: str, ulid: str, *, full: bool = True) -> Job:
        """Returns a job as it stands.

        Raises:
            JobNotFound: There is none.
        """
        lanes = self._set.lanes(queue)
        job = await (lanes.read if full else lanes.read_basic).one(ulid)
        if job is None:
            raise JobNotFound(f"{queue}-{ulid}")
        return job

    def watch_job(
        self, queue: str, ulid: str, wish: WatchWish = EVERYTHING
    ) -> AsyncIterator[tuple[JobEvent | OutputEvent | None, int, OutputPlace]]:
        """Yields the job and its output, as `Hub.watch`."""
        return self._hub.watch(queue, ulid, wish)

    def run_job(
        self, submission: Submission, wish: WatchWish, *, cancel_on_disconnect: bool = False
    ) -> AsyncIterator[tuple[JobEvent | OutputEvent | None, int, OutputPlace]]:
        """Submit a job and yield its course, as `JobRuns.run`."""
        return self._runs.run(submission, wish, cancel_on_disconnect=cancel_on_disconnect)

    async def watch_jobs(
        self,
        wanted: JobFilter,
        *,
        full: bool = False,
        cursor: str = "",
        only_changes: bool = False,
    ) -> AsyncIterator[tuple[Job | CaughtUp | None, str]]:
        """Yield the jobs of a queue that a filter lets through, as `QueueFeed.watch`.

        Raises:
            QueueNotFound: No job was ever submitted to it.
        """
        if not await self._queues.exists(wanted.queue):
            raise QueueNotFound(wanted.queue)
        steps = self._feed.watch(wanted, full=full, cursor=cursor, only_changes=only_changes)
        async for step in steps:
            yield step

    def watch_workers(self, queue: str) -> AsyncIterator[Worker | CaughtUp | str | None]:
        """Yield the workers as they stand, then each that changes, as `Overview.watch_workers`."""
        return self._overview.watch_workers(queue)

    def watch_queues(self, names: Sequence[str], interval_s: float) -> AsyncIterator[list[Queue]]:
        """Yields queues that changed, as `Overview.watch_queues`."""
        return self._overview.watch_queues(names, interval_s)

    async def cancel_job(self, queue: str, ulid: str, reason: str) -> Job:
        """Asks for the end of a job; returns it as it stands then.

        Raises:
            JobNotFound: There is none.
            WrongState: It has finished otherwise.
        """
        lanes = self._set.lanes(queue)
        outcome = await lanes.cancel.one((ulid, reason))
        if isinstance(outcome, JobwireError):
            raise outcome
        if outcome is JobState.CANCELLING:
            self._set.due_in(queue, self.options.cancel_grace_ms)
        return await self.get_job(queue, ulid, full=False)

    async def retry_job(self, queue: str, ulid: str, reason: str, delay_ms: int) -> Job:
        """Put a job back after its end (a redrive), as `Bulk.retry_one`."""
        return await self._bulk.retry_one(queue, ulid, reason, delay_ms)

    @property
    def bulk(self) -> Bulk:
        """What is done to many jobs at once."""
        return self._bulk

    # --------------------------------------------------------------- workers

    async def register_worker(self, spec: WorkerSpec, instance: str = "") -> None:
        """Makes a worker known and READY; what another process of its id held goes back.

        Args:
            spec: What it is and serves.
            instance: Of its process; '' if that was not said.
        """
        if self._draining:
            raise ServerDraining
        if await self._directory.register(spec, instance):
            await self._reaper.sweep()

    def lease_ms(self, spec: WorkerSpec) -> int:
        """Returns the lease that each of the worker's jobs gets."""
        return self._claims.lease_ms(spec)

    def heartbeat_ms(self, spec: WorkerSpec) -> int:
        """Returns how often a worker that makes calls is to send heartbeats, which alone keep it
        and its leases: two of them may fail.
        """
        return min(
            max(self.options.heartbeat_interval_ms, HEARTBEAT_CALLS_MS),
            self.options.worker_timeout_ms // RENEWALS_A_LEASE,
            self.lease_ms(spec) // RENEWALS_A_LEASE,
        )

    async def claim(self, wish: ClaimWish) -> Handed:
        """Lease jobs to a registered worker that may run them; tell of cancellations, which end
        the wait.

        Raises:
            WorkerNotFound: It never registered, was lost, or left.
            JobNotFound: There is no job of the id that it wants.
            WrongState: That job is not PENDING, its queue is paused, or the worker does not serve
                it.
        """
        if wish.job is None:
            return await self._polls.claim(wish)
        job = await self.get_job(*wish.job, full=False)
        facts = self._records.facts(job.record)
        assignment, lease_ms = await self._claims.claim_job(wish.worker_id, job, facts)
        return Handed((assignment,), lease_ms, await self._polls.told(wish.worker_id))

    async def claim_next(self, wish: ClaimWish) -> Handed:
        """Lease jobs behind a completion, which is recorded, and that is what counts: the worker's
        next call hears why there are none.
        """
        try:
            return await self.claim(wish)
        except JobwireError:
            return Handed()

    @property
    def stuck_handlers(self) -> int:
        """Handlers of this server's workers that go on although they were told to stop."""
        return self._roster.stuck + self._directory.stuck

    async def attach_worker(self, attach: Attach) -> WorkerSession:
        """Begins a worker's stream, as `Roster.attach`."""
        return await self._roster.attach(attach)

    async def release_session(self, session: WorkerSession) -> None:
        """Ends a worker's stream."""
        await self._roster.release(session)

    async def report(self, worker_id: str, item: Reported) -> Renewal:
        """Record progress, output and a checkpoint, and renew the lease.

        Raises:
            LeaseLost: The job is not the caller's.
            OutputFull: A limit is reached; nothing was recorded.
            OutputGap: The output does not continue what was written; nothing was recorded.
        """
        self._directory.hear(worker_id)
        (renewal,) = await self._report_many(worker_id, (item,))
        if renewal.lost:
            raise LeaseLost(f"{item.queue}-{item.ulid}", item.fencing_token)
        if renewal.refusal:
            raise renewal.refusal
        return renewal

    async def heartbeat(
        self, worker_id: str, leases: Sequence[tuple[str, str, int]], stuck: int | None = None
    ) -> tuple[WorkerStatus, list[Renewal], int]:
        """Renews the leases given as (queue, ULID, fencing token).

        Args:
            worker_id: The worker, on a stream or not.
            leases: Those that it holds.
            stuck: How many of its handlers do not stop; None: no news.

        Returns:
            The worker's status, a renewal for each lease in order, and the lease in milliseconds.

        Raises:
            WorkerNotFound: It never registered, was lost, or left.
        """
        status = await self._directory.beat(worker_id)
        self._roster.hear(worker_id, ((f"{queue}-{ulid}", token) for queue, ulid, token in leases))
        if stuck is not None:
            await self._directory.note_stuck(worker_id, stuck)
        lease_ms = await self._directory.lease_ms(worker_id, self.options.lease_ms)
        reported = [Reported(queue, ulid, token, b"") for queue, ulid, token in leases]
        return status, await self._report_many(worker_id, reported), lease_ms

    async def _report_many(self, worker_id: str, items: Sequence[Reported]) -> list[Renewal]:
        """Records progress and renews leases over any queues; answers each."""
        lease_ms = await self._directory.lease_ms(worker_id, self.options.lease_ms)
        by_queue: dict[str, list[int]] = {}
        for at, item in enumerate(items):
            by_queue.setdefault(item.queue, []).append(at)
        renewals = [Renewal(lost=True)] * len(items)

        async def renew(queue: str, places: list[int]) -> None:
            reports = [
                Report(
                    item.ulid,
                    worker_id,
                    item.fencing_token,
                    lease_ms,
                    item.progress,
                    item.output,
                    item.checkpoint,
                )
                for item in (items[at] for at in places)
            ]
            for at, answer in zip(places, await self._renew(queue, reports), strict=True):
                renewals[at] = answer

        await asyncio.gather(*(renew(queue, places) for queue, places in by_queue.items()))
        return renewals

    async def _renew(self, queue: str, reports: Sequence[Report]) -> Sequence[Renewal]:
        return await self._set.lanes(queue).report.submit(reports)

    async def set_worker_status(self, worker_id: str, status: WorkerStatus) -> None:
        """Changes whether a worker takes jobs. Raises WorkerNotFound."""
        await self._directory.set_status(worker_id, status)

    async def drain_worker(self, worker_id: str) -> Worker:
        """Let a worker finish and leave; return it. Raises WorkerNotFound."""
        await self._directory.set_status(worker_id, WorkerStatus.DRAINING)
        return await self.operators.get_worker(worker_id)

    async def deregister_worker(self, worker_id: str, session: str = "", since_ms: int = 0) -> int:
        """Ends a worker; returns how many jobs of its went back to their queues.

        Args:
            worker_id: The worker.
            session: The stream that it leaves by; '' for one that makes calls.
            since_ms: Since when that stream counts.

        Raises:
            Superseded: A newer stream of the worker counts by now; nothing was done.
        """
        spec = await self._directory.remove(worker_id, session, since_ms)
        released = 0
        for queue in spec.queues if spec else ():
            released += await self._attempts.release_held(
                queue, worker_id, "the worker deregistered"
            )
        return released

    async def complete(self, worker_id: str, item: Ended) -> Completed:
        """End an attempt, as `Attempts.complete`."""
        self._directory.hear(worker_id)
        return await self._attempts.complete(worker_id, item)

"""The calls of workers: claims, completions and heartbeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jobwire_server.broker.attempts import Attempts
from jobwire_server.broker.lanes import QueueLanes
from jobwire_server.broker.reports import Reports
from jobwire_server.domain.errors import JobNotFound, JobwireError
from jobwire_server.domain.ids import job_id_of
from jobwire_server.domain.model import Completed, Completion, Renewal, WorkerReport, WorkerStatus
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.records import RecordCodec
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.workers.callers import Callers
from jobwire_server.workers.cancel_notices import CancelNotices
from jobwire_server.workers.claims import Claims, ClaimWish, Handed
from jobwire_server.workers.frames import LEAVE_REASON, DrainNotice
from jobwire_server.workers.known_workers import KnownWorkers
from jobwire_server.workers.streams import Streams


class Beat(NamedTuple):
    """The answer to a heartbeat."""

    status: WorkerStatus
    renewals: list[Renewal]
    """One for each lease, in order."""
    lease_ms: int
    drain: DrainNotice | None
    """The worker is to leave."""


class WorkerCalls:
    """Answers workers that make a call at a time.

    Args:
        lanes: Where jobs are read.
        known: The workers.
        callers: Hear of them.
        claims: Lease single jobs.
        cancel_notices: Lease whatever jobs come, and tell of cancellations.
        reports: Renew leases.
        attempts: End attempts.
        streams: Hear of workers that make calls beside their stream.
        records: Reads what jobs are about.
        options: The lease of a worker that asks for none.
        clock: The store's time.
    """

    def __init__(
        self,
        lanes: QueueLanes,
        known: KnownWorkers,
        callers: Callers,
        claims: Claims,
        cancel_notices: CancelNotices,
        reports: Reports,
        attempts: Attempts,
        streams: Streams,
        records: RecordCodec,
        options: BrokerOptions,
        clock: StoreClock,
    ) -> None:
        self._lanes = lanes
        self._known = known
        self._callers = callers
        self._claims = claims
        self._cancel_notices = cancel_notices
        self._reports = reports
        self._attempts = attempts
        self._streams = streams
        self._records = records
        self._options = options
        self._clock = clock

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
            return await self._cancel_notices.claim(wish)
        queue, ulid = wish.job
        job = await self._lanes.of(queue).read_basic.one(ulid)
        if job is None:
            raise JobNotFound(job_id_of(queue, ulid))
        facts = self._records.facts(job.record)
        assignment, lease_ms = await self._claims.claim_job(wish.worker_id, job, facts)
        return Handed((assignment,), lease_ms, await self._cancel_notices.told(wish.worker_id))

    async def claim_next(self, wish: ClaimWish) -> Handed:
        """Lease jobs behind a completion, which is recorded, and that is what counts: the worker's
        next call hears why there are none.
        """
        try:
            return await self.claim(wish)
        except JobwireError:
            return Handed()

    async def complete(self, worker_id: str, item: Completion) -> Completed:
        """End an attempt, as `Attempts.complete`."""
        self._callers.hear(worker_id)
        self._callers.moved(worker_id)
        return await self._attempts.complete(worker_id, item)

    async def heartbeat(
        self, worker_id: str, leases: Sequence[tuple[str, str, int]], stuck: int | None = None
    ) -> Beat:
        """Renew the leases given as (queue, ULID, fencing token).

        Args:
            worker_id: The worker, on a stream or not.
            leases: Those that it holds.
            stuck: How many of its handlers do not stop; None: no news.

        Raises:
            WorkerNotFound: It never registered, was lost, or left.
        """
        status = await self._callers.beat(worker_id)
        self._streams.hear(
            worker_id, ((job_id_of(queue, ulid), token) for queue, ulid, token in leases)
        )
        if stuck is not None:
            await self._known.note_stuck(worker_id, stuck)
        lease_ms = await self._known.lease_ms(worker_id, self._options.lease_ms)
        reported = [WorkerReport(queue, ulid, token, b"") for queue, ulid, token in leases]
        renewals = await self._reports.report_many(worker_id, reported)
        if any(renewal.lost for renewal in renewals):
            self._callers.moved(worker_id)
        drain = None
        if status is WorkerStatus.DRAINING:
            leave_by_ms = self._known.leave_by_ms(worker_id, self._clock.now_ms())
            drain = DrainNotice(leave_by_ms, leave=True, reason=LEAVE_REASON)
        return Beat(status, renewals, lease_ms, drain)

"""Joining: what a worker holds when its stream attaches is settled, queue by queue."""

from __future__ import annotations

import asyncio
import random
from contextvars import Context

import structlog

from jobwire_server.domain.background import OwnedTasks
from jobwire_server.domain.errors import JobwireError, StoreUnavailable
from jobwire_server.domain.ids import job_id_of
from jobwire_server.domain.model import Former
from jobwire_server.store.attempts import ReportToWrite
from jobwire_server.workers.broker_parts import HeldJobs, Reports
from jobwire_server.workers.dispatchers import Dispatchers
from jobwire_server.workers.session import WorkerSession

log = structlog.get_logger(__name__)

JOIN_PATIENCE_S = 1.0
"""How long an attachment waits for each of its queues; workers wait for an answer a few times as
long.
"""
LATE_JOIN_S = 0.5
"""How often a queue is tried that could not be reached then."""

NamedLeases = list[tuple[str, int]]
"""ULIDs and fencing tokens, of one queue."""


class Joining:
    """Lets attached workers into their queues.

    Args:
        reports: Renew what a worker names.
        held: Ends what it does not.
        dispatchers: Bring it jobs from then on.
        tasks: Go on with queues that can't be reached now.
    """

    def __init__(
        self, reports: Reports, held: HeldJobs, dispatchers: Dispatchers, tasks: OwnedTasks
    ) -> None:
        self._reports = reports
        self._held = held
        self._dispatchers = dispatchers
        self._tasks = tasks

    async def settle(self, session: WorkerSession, former: Former) -> dict[str, NamedLeases]:
        """Settle what the worker holds: what it names goes on, the rest returns to the queues.

        Returns:
            What it names in queues that could not be reached, for `offer`.

        Raises:
            StoreUnavailable: None of its queues could be reached.
        """
        named: dict[str, NamedLeases] = {queue: [] for queue in session.attach.spec.queues}
        for queue, ulid, token in session.attach.leases:
            named.setdefault(queue, []).append((ulid, token))
            session.keep(job_id_of(queue, ulid), token)
        # Side by side: the node of one queue may be away, which is no reason not to serve others.
        outcomes = await asyncio.gather(
            *(self._try_join(session, queue, held, former) for queue, held in named.items())
        )
        late = {
            queue: error for queue, error in zip(named, outcomes, strict=True) if error is not None
        }
        if late and len(late) == len(named):
            raise next(iter(late.values()))
        session.outgoing.greet()
        return {queue: named[queue] for queue in late}

    def offer(self, session: WorkerSession, late: dict[str, NamedLeases], former: Former) -> None:
        """Offer the worker's demand to its queues; to those that are late once they are joined."""
        for queue in session.attach.spec.queues:
            if queue not in late:
                self._dispatchers.of(queue).offer(session.demand)
        for queue, leases in late.items():
            # Not in the name of the call that happens to begin it.
            joining = self._join_later(session, queue, leases, former)
            self._tasks.begin(joining, "late-join", context=Context())

    def withdraw(self, session: WorkerSession) -> None:
        """Withdraw the worker's demand from its queues."""
        for queue in session.attach.spec.queues:
            self._dispatchers.of(queue).withdraw(session.demand)

    async def _try_join(
        self, session: WorkerSession, queue: str, leases: NamedLeases, former: Former
    ) -> StoreUnavailable | None:
        try:
            async with asyncio.timeout(JOIN_PATIENCE_S):
                await self._join(session, queue, leases, former)
        except TimeoutError:
            return StoreUnavailable(f"the store does not answer for the queue {queue}")
        except StoreUnavailable as error:
            return error
        return None

    async def _join_later(
        self, session: WorkerSession, queue: str, leases: NamedLeases, former: Former
    ) -> None:
        """Let a worker into a queue that could not be reached when it attached."""
        while not session.ended.done():
            await asyncio.sleep(LATE_JOIN_S * random.uniform(0.5, 1.0))
            try:
                await self._join(session, queue, leases, former)
            except JobwireError as error:
                log.debug("queue not joined", queue=queue, error=error.message)
                continue
            # Not before: what was claimed for this stream must not be taken back.
            if queue in session.attach.spec.queues and not session.ended.done():
                self._dispatchers.of(queue).offer(session.demand)
            return

    async def _join(
        self, session: WorkerSession, queue: str, leases: NamedLeases, former: Former
    ) -> None:
        """Settle what the worker holds in a queue."""
        if leases:
            reports = [
                ReportToWrite(u, session.worker_id, t, session.lease_ms, b"") for u, t in leases
            ]
            renewals = await self._reports.renew(queue, reports)
            for (ulid, token), renewal in zip(leases, renewals, strict=True):
                if renewal.lost:
                    session.lose(job_id_of(queue, ulid), token)
                elif renewal.cancel:
                    session.cancel(renewal.cancel)
        if queue in session.attach.spec.queues:
            keep = {ulid for ulid, _ in leases}
            await self._held.end_unnamed(queue, session.worker_id, keep, former)

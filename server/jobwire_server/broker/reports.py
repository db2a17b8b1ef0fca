"""Reports: progress, output and checkpoints of running jobs, and the leases that they renew."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from jobwire_server.broker.lanes import QueueLanes
from jobwire_server.domain.errors import LeaseLost
from jobwire_server.domain.ids import job_id_of
from jobwire_server.domain.model import Renewal, WorkerReport
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.attempts import ReportToWrite
from jobwire_server.workers.callers import Callers
from jobwire_server.workers.known_workers import KnownWorkers


class Reports:
    """Records reports and renews leases.

    Args:
        lanes: Where calls are gathered.
        known: The workers, whose leases differ in length.
        callers: Note that they live.
        options: The lease of a worker that asks for none.
    """

    def __init__(
        self, lanes: QueueLanes, known: KnownWorkers, callers: Callers, options: BrokerOptions
    ) -> None:
        self._lanes = lanes
        self._known = known
        self._callers = callers
        self._options = options

    async def report(self, worker_id: str, item: WorkerReport) -> Renewal:
        """Record progress, output and a checkpoint, and renew the lease.

        Raises:
            LeaseLost: The job is not the caller's.
            OutputFull: A limit is reached; nothing was recorded.
            OutputGap: The output does not continue what was written; nothing was recorded.
        """
        self._callers.hear(worker_id)
        lease_ms = await self._known.lease_ms(worker_id, self._options.lease_ms)
        report = _of_worker(item, worker_id, lease_ms)
        renewal = await self._lanes.of(item.queue).report.one(report)
        if renewal.lost:
            raise LeaseLost(job_id_of(item.queue, item.ulid), item.fencing_token)
        if renewal.refusal:
            raise renewal.refusal
        return renewal

    async def report_many(self, worker_id: str, items: Sequence[WorkerReport]) -> list[Renewal]:
        """Record reports and renew leases over any queues; answer each."""
        lease_ms = await self._known.lease_ms(worker_id, self._options.lease_ms)
        by_queue: dict[str, list[int]] = {}
        for at, item in enumerate(items):
            by_queue.setdefault(item.queue, []).append(at)
        renewals = [Renewal(lost=True)] * len(items)

        async def renew(queue: str, indexes: list[int]) -> None:
            reports = [_of_worker(items[at], worker_id, lease_ms) for at in indexes]
            for at, answer in zip(indexes, await self.renew(queue, reports), strict=True):
                renewals[at] = answer

        await asyncio.gather(*(renew(queue, indexes) for queue, indexes in by_queue.items()))
        return renewals

    async def renew(self, queue: str, reports: Sequence[ReportToWrite]) -> Sequence[Renewal]:
        """Record reports of one queue; answer each."""
        return await self._lanes.of(queue).report.submit(reports)


def _of_worker(item: WorkerReport, worker_id: str, lease_ms: int) -> ReportToWrite:
    _, ulid, token, progress, output, checkpoint = item
    return ReportToWrite(ulid, worker_id, token, lease_ms, progress, output, checkpoint)

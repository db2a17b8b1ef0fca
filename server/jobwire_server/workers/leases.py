"""Leases: renews what the workers on streams hold, and tells them what is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import structlog

from jobwire_server.domain.background import Loop
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.ids import QUEUE, ULID, job_id_of, split_ulids
from jobwire_server.domain.options import RENEWALS_A_LEASE, BrokerOptions
from jobwire_server.store.attempts import ReportToWrite
from jobwire_server.workers.broker_parts import Reports
from jobwire_server.workers.session import WorkerSession

log = structlog.get_logger(__name__)

RENEW_AT_ONCE = 1_000
"""Leases of one renewal."""


class _Held(NamedTuple):
    session: WorkerSession
    job_id: str
    fencing_token: int


class Leases:
    """Asks the store about leases, in batches, and passes its answers on. `start` and `stop` are
    idempotent.

    Args:
        sessions: Those of this server, by worker.
        reports: Renew leases.
        options: The lease of workers that ask for none.
    """

    def __init__(
        self,
        sessions: Mapping[str, WorkerSession],
        reports: Reports,
        options: BrokerOptions,
    ) -> None:
        self._sessions = sessions
        self._renew = reports.renew
        self._default_ms = self._shortest_ms = options.lease_ms
        self._loop = Loop("lease-renewal", self._step)

    def start(self) -> None:
        """Begin to renew."""
        self._loop.start()

    async def stop(self) -> None:
        """End; tolerates never started."""
        await self._loop.stop()

    def enter(self, session: WorkerSession) -> None:
        """A session has come, perhaps with leases shorter than those of the others."""
        if session.lease_ms < self._shortest_ms:
            self._loop.wake()

    async def _step(self) -> float:
        try:
            await self.renew_all()
        except JobwireError as error:
            # Two renewals of a lease may fail; none comes sooner because one did.
            log.debug("leases not renewed", error=error.message)
        leases = [session.lease_ms for session in self._sessions.values()]
        self._shortest_ms = min([self._default_ms, *leases])
        return self._shortest_ms / 1000 / RENEWALS_A_LEASE * random.uniform(0.9, 1.0)

    async def renew_all(self) -> None:
        """Renew every lease of every worker that was heard of lately; one call for a thousand."""
        by_queue: dict[str, list[_Held]] = {}
        for session in self._sessions.values():
            if session.renewable:
                for job_id, token in session.leases.tokens.items():
                    held = _Held(session, job_id, token)
                    by_queue.setdefault(_queue_of(job_id), []).append(held)

        async def renew(queue: str, leases: list[_Held]) -> None:
            for at in range(0, len(leases), RENEW_AT_ONCE):
                await self._ask(queue, leases[at : at + RENEW_AT_ONCE])

        # Side by side, because queues may live on different nodes, of which one may be away.
        outcomes = await asyncio.gather(
            *(renew(queue, leases) for queue, leases in by_queue.items()), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def check(self, queue: str, ulids: str) -> None:
        """Ask about those leases of a queue that something happened to; ULIDs end to end."""
        named = [job_id_of(queue, ulid) for ulid in split_ulids(ulids)]
        leases = [
            _Held(session, job_id, session.leases.tokens[job_id])
            for session in self._sessions.values()
            for job_id in named
            if job_id in session.leases.tokens
        ]
        await self._ask(queue, leases)

    async def check_queue(self, queue: str) -> None:
        """Ask about every lease of a queue."""
        leases = [
            _Held(session, job_id, token)
            for session in self._sessions.values()
            for job_id, token in session.leases.tokens.items()
            if _queue_of(job_id) == queue
        ]
        await self._ask(queue, leases)

    async def _ask(self, queue: str, leases: Sequence[_Held]) -> None:
        if not leases:
            return
        reports = [
            ReportToWrite(
                held.job_id[ULID],
                held.session.worker_id,
                held.fencing_token,
                held.session.lease_ms,
                b"",
            )
            for held in leases
        ]
        for held, renewal in zip(leases, await self._renew(queue, reports), strict=True):
            if renewal.lost:
                held.session.lose(held.job_id, held.fencing_token)
            elif renewal.cancel:
                held.session.cancel(renewal.cancel)


def _queue_of(job_id: str) -> str:
    return job_id[QUEUE]

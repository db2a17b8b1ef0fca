"""The lease keeper: renews what the workers on streams hold, and tells them what is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from jobwire_server.domain.ids import ULID_LENGTH
from jobwire_server.domain.model import Renewal
from jobwire_server.store.jobs import Report
from jobwire_server.workers.session import WorkerSession

RENEW_AT_ONCE = 1_000
"""Leases of one renewal."""
RENEWALS_A_LEASE = 3
"""A lease is renewed when a third of it has passed, so that two renewals may fail."""


class _Held(NamedTuple):
    session: WorkerSession
    job_id: str
    fencing_token: int


class LeaseKeeper:
    """Asks the store about leases, in batches, and passes its answers on.

    Args:
        sessions: Those of this server, by worker.
        renew: Renews leases of one queue; answers each.
    """

    def __init__(
        self,
        sessions: Mapping[str, WorkerSession],
        renew: Callable[[str, Sequence[Report]], Awaitable[Sequence[Renewal]]],
    ) -> None:
        self._sessions = sessions
        self._renew = renew

    async def renew_all(self) -> None:
        """Renews every lease of every worker that was heard of lately; one call for a thousand."""
        by_queue: dict[str, list[_Held]] = {}
        for session in self._sessions.values():
            if session.renewable:
                for job_id, token in session.held.items():
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
        """Asks about those leases of a queue that something happened to; ULIDs end to end."""
        named = [
            f"{queue}-{ulids[at : at + ULID_LENGTH]}" for at in range(0, len(ulids), ULID_LENGTH)
        ]
        leases = [
            _Held(session, job_id, session.held[job_id])
            for session in self._sessions.values()
            for job_id in named
            if job_id in session.held
        ]
        await self._ask(queue, leases)

    async def check_queue(self, queue: str) -> None:
        """Asks about every lease of a queue."""
        leases = [
            _Held(session, job_id, token)
            for session in self._sessions.values()
            for job_id, token in session.held.items()
            if _queue_of(job_id) == queue
        ]
        await self._ask(queue, leases)

    async def _ask(self, queue: str, leases: Sequence[_Held]) -> None:
        if not leases:
            return
        reports = [
            Report(
                held.job_id[-ULID_LENGTH:],
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
    return job_id[: -ULID_LENGTH - 1]

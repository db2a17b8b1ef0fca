"""Departures: what is left to be done for a session that is over."""

from __future__ import annotations

import asyncio
from contextvars import Context
from time import monotonic

import structlog

from jobwire_server.domain.background import OwnedTasks
from jobwire_server.domain.errors import JobwireError, Superseded
from jobwire_server.domain.ids import JobId
from jobwire_server.domain.model import Assignment
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.workers import WorkerStore
from jobwire_server.workers.broker_parts import Attempts, Registration
from jobwire_server.workers.reaper import Reaper
from jobwire_server.workers.session import WorkerSession

log = structlog.get_logger(__name__)

LATE_S = 1.0
"""What comes so much later than it was to shows that this server, or the store, stood still."""


class Departures:
    """Settles sessions that are over.

    Args:
        workers: The registry.
        options: The window in which a worker may come back.
        attempts: Give back what did not reach the worker.
        registration: Lets a worker go that has left.
        reaper: Takes back what a worker held that did not come back.
        tasks: Wait for workers to come back.
    """

    def __init__(
        self,
        workers: WorkerStore,
        options: BrokerOptions,
        attempts: Attempts,
        registration: Registration,
        reaper: Reaper,
        tasks: OwnedTasks,
    ) -> None:
        self._workers = workers
        self._options = options
        self._attempts = attempts
        self._registration = registration
        self._reaper = reaper
        self._tasks = tasks
        self._draining = False

    def drain(self) -> None:
        """Wait for no worker to come back from now on: other servers have them."""
        self._draining = True

    async def settle(self, session: WorkerSession, current: bool) -> None:
        """Settle a session.

        Args:
            session: That is over.
            current: True if the worker has no newer one here.
        """
        worker_id = session.worker_id
        unsent, sent = session.abandon()
        error = session.ended.exception()
        await session.settle()
        if session.detached and not isinstance(error, Superseded):
            try:
                await self._registration.deregister(worker_id, session.name, session.since_ms)
                return
            except Superseded as newer:
                error = newer
        if isinstance(error, Superseded):
            # What was claimed before the newer stream attached was settled there; of what was
            # claimed since then, acknowledged or not, nobody else knows.
            leases = session.leases.tokens
            held = [Assignment(JobId(job_id), token, 0, b"") for job_id, token in leases.items()]
            self._attempts.give_back(worker_id, held, int(error.metadata["since_ms"]))
        else:
            self._attempts.give_back(worker_id, unsent)
            self._attempts.give_back(worker_id, sent, sent=True)
            if current:
                # Not in the name of the call that happens to begin it.
                waiting = self._await_return(session)
                self._tasks.begin(waiting, "reconnect-window", context=Context())

    async def _await_return(self, session: WorkerSession) -> None:
        """Give a worker the window to come back, then have its jobs taken back."""
        stream = (session.worker_id, session.name, session.since_ms)
        window_ms, retain_ms = (
            self._options.reconnect_window_ms,
            self._options.retain_lost_workers_ms,
        )
        try:
            gone: bool | None = None
            while gone is None:
                # Over again where this server or the store stood still meanwhile: nobody could
                # come back.
                now_ms = await self._workers.broken(*stream)
                if not now_ms or self._draining:
                    return
                slept = monotonic()
                await asyncio.sleep(window_ms / 1000)
                if monotonic() - slept > window_ms / 1000 + LATE_S:
                    continue
                not_after_ms = now_ms + window_ms + round(LATE_S * 1000)
                gone = await self._workers.gone(
                    *stream,
                    retain_ms=retain_ms,
                    not_after_ms=not_after_ms,
                    lives=session.stood_still,
                )
            if gone:
                await self._reaper.sweep()
        except JobwireError as error:
            # The worker's silence tells the rest to whichever server has the store back first.
            log.warning("window not kept", worker_id=session.worker_id, error=error.message)

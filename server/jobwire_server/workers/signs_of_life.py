"""Signs of life: the streams here tell the registry who lives, and hear what it says of them."""

from __future__ import annotations

import random
from collections.abc import Mapping

from jobwire_server.domain.background import Loop
from jobwire_server.domain.errors import StoreUnavailable, Superseded
from jobwire_server.domain.model import WorkerStatus
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.store.workers import SignOfLife, WorkerStore
from jobwire_server.workers.frames import LEAVE_MS, LEAVE_REASON
from jobwire_server.workers.session import WorkerSession

PERIOD_S = 1.0
"""How often signs of life and counters go to the store, at least."""
AT_ONCE = 500
"""Workers of one call."""


class SignsOfLife:
    """Keeps the registry and the sessions of this server consistent. `start` and `stop` are
    idempotent.

    Args:
        sessions: Those of this server, by worker.
        workers: The registry.
        clock: The store's time.
        worker_timeout_ms: The silence that makes a worker lost.
    """

    def __init__(
        self,
        sessions: Mapping[str, WorkerSession],
        workers: WorkerStore,
        clock: StoreClock,
        worker_timeout_ms: int,
    ) -> None:
        self._sessions = sessions
        self._workers = workers
        self._clock = clock
        self._period_s = min(PERIOD_S, worker_timeout_ms / 4000)
        self._loop = Loop("stream-signs-of-life", self._touch, error_pause_s=self._period_s)

    def start(self) -> None:
        """Begin."""
        self._loop.start()

    async def stop(self) -> None:
        """End; tolerates never started."""
        await self._loop.stop()

    def soon(self) -> None:
        """Tell and hear at once: something is new here, or may be there."""
        self._loop.wake()

    def worker_event(self, data: bytes) -> None:
        """The registry says that a worker changed: `<worker id> <session>`."""
        worker_id, _, name = data.decode().partition(" ")
        session = self._sessions.get(worker_id)
        if session is not None and session.name != name:
            self.soon()

    def follow(self, session: WorkerSession, status: WorkerStatus) -> None:
        """Have a session do what the registry says of its worker."""
        if status is WorkerStatus.DRAINING:
            now_ms = self._clock.now_ms()
            session.drain(LEAVE_MS / 1000, now_ms, leave=True, reason=LEAVE_REASON)
        session.demand.apply_status(status)

    async def _touch(self) -> float:
        sessions = [s for s in self._sessions.values() if s.renewable]
        for at in range(0, len(sessions), AT_ONCE):
            part = sessions[at : at + AT_ONCE]
            signs, moved = [], []
            for session in part:
                stats, told, has_moved = session.news()
                if has_moved:
                    moved.append(session.worker_id)
                instance = session.attach.instance
                signs.append(
                    SignOfLife(
                        session.worker_id, session.name, session.since_ms, instance, stats, told
                    )
                )
            try:
                statuses = await self._workers.touch(signs, moved)
            except BaseException:
                for session in part:
                    session.told.again()
                raise
            for session, status in zip(part, statuses, strict=True):
                self._hear(session, status)
        return self._period_s * random.uniform(0.9, 1.0)

    def _hear(self, session: WorkerSession, status: WorkerStatus | Superseded | None) -> None:
        if isinstance(status, Superseded):
            session.end(status)
        elif status is None or status is WorkerStatus.LOST:
            # It was taken for dead while its stream was quiet, or the store lost it; a new
            # attachment settles it.
            session.end(StoreUnavailable("the worker was taken for lost; attach again"))
        else:
            self.follow(session, status)

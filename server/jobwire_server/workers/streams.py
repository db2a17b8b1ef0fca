"""The worker streams of this server, from attachment to end.

What a worker holds is settled when it attaches (joining.py) and when its stream is over
(departures.py). Meanwhile the registry, the leases and the sessions are kept consistent: signs of
life and counters go out once a second (signs_of_life.py), leases are renewed in batches while their
workers are heard of (leases.py), and cancellations and losses are passed on as the store tells them
(signals.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from jobwire_server.domain.background import Loop, OwnedTasks
from jobwire_server.domain.errors import ServerDraining
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.store.workers import WorkerStore
from jobwire_server.workers.arrival import arrive
from jobwire_server.workers.departures import Departures
from jobwire_server.workers.frames import Attach
from jobwire_server.workers.joining import Joining
from jobwire_server.workers.leases import Leases
from jobwire_server.workers.session import WorkerSession
from jobwire_server.workers.sessions import Sessions
from jobwire_server.workers.signals import Signals
from jobwire_server.workers.signs_of_life import SignsOfLife

LOOK_S = 0.25
"""How often sessions are looked at for what time asks of them; a fraction of the shortest claim
timeout that makes sense.
"""


class Streams:
    """Attaches workers and lets them go. `start` and `stop` are idempotent.

    Args:
        sessions: Those of this server.
        workers: The registry.
        clock: The store's time.
        joining: Settles what a worker holds that attaches.
        departures: Settles sessions that are over.
        leases: Renews what workers hold.
        signs: Tells the registry who lives.
        signals: Hears what the store tells of workers and leases.
        tasks: Go on with what outlives calls and sessions.
    """

    def __init__(
        self,
        sessions: Sessions,
        workers: WorkerStore,
        clock: StoreClock,
        joining: Joining,
        departures: Departures,
        leases: Leases,
        signs: SignsOfLife,
        signals: Signals,
        tasks: OwnedTasks,
    ) -> None:
        self._sessions = sessions
        self._workers = workers
        self._clock = clock
        self._joining = joining
        self._departures = departures
        self._leases = leases
        self._signs = signs
        self._signals = signals
        self._tasks = tasks
        self._endings = OwnedTasks()
        """What is left to be done for sessions that are over."""
        self._drained_by_ms: int | None = None
        """When the last stream is ended at the latest, once the server drains."""
        self._loop = Loop("stream-look", self._look, error_pause_s=LOOK_S)

    # ------------------------------------------------------------------- life

    def start(self) -> None:
        """Begin the loops."""
        self._loop.start()
        self._signs.start()
        self._leases.start()
        self._signals.start()

    async def stop(self) -> None:
        """End the loops and what is left of the sessions; tolerates never started."""
        for session in [*self._sessions.by_worker.values()]:
            session.end(ServerDraining())
            # Whoever holds the stream may come to it only after the store is closed.
            self._begin_release(session)
        # What was promised to workers is done; only then is waiting for them of no more use.
        await self._endings.finish()
        await self._loop.stop()
        await self._signs.stop()
        await self._leases.stop()
        await self._signals.stop()
        await self._tasks.cancel()

    def drain(self, deadline_s: float) -> None:
        """Send every worker to another server; take no new ones."""
        self._drained_by_ms = self._clock.now_ms() + round(deadline_s * 1000)
        self._departures.drain()
        for session in self._sessions.by_worker.values():
            self._send_away_if_draining(session)

    def _send_away_if_draining(self, session: WorkerSession) -> None:
        if self._drained_by_ms is None:
            return
        now = self._clock.now_ms()
        left_s = max(0, self._drained_by_ms - now) / 1000
        session.drain(left_s, now, leave=False, reason="the server shuts down", until_idle=True)

    @property
    def count(self) -> int:
        """The streams that are attached here."""
        return len(self._sessions)

    @property
    def settling(self) -> int:
        """The sessions that are over and of which something is left to be done."""
        return len(self._endings)

    @property
    def stuck(self) -> int:
        """Handlers of their workers that do not stop; asked from any thread."""
        return self._sessions.stuck

    # --------------------------------------------------------------- sessions

    async def attach(self, attach: Attach) -> WorkerSession:
        """Begin a session.

        Raises:
            ServerDraining: Attach to another server.
            StoreUnavailable: The store is away.
            Superseded: The worker has given this attempt up, and a later one counts.
        """
        if self._drained_by_ms is not None:
            raise ServerDraining
        spec, name = attach.spec, self._sessions.next_name()
        found = await arrive(
            lambda not_after_ms: self._workers.attach(
                spec, name, attach.instance, attach.attempt, not_after_ms
            )
        )
        session = self._sessions.begin(attach, name, found)
        self._signals.enter(spec.queues)
        try:
            late = await self._joining.settle(session, found.former)
        except BaseException:
            # Nobody holds the stream yet, so nobody else would end the session.
            self._begin_release(session)
            raise
        self._signs.follow(session, found.status)
        self._send_away_if_draining(session)
        self._joining.offer(session, late, found.former)
        self._signs.soon()
        self._leases.enter(session)
        return session

    def hear(self, worker_id: str, arrived: Iterable[tuple[str, int]]) -> None:
        """A call told of a worker; see `WorkerSession.hear`."""
        session = self._sessions.by_worker.get(worker_id)
        if session is not None:
            session.hear(arrived)

    async def release(self, session: WorkerSession) -> None:
        """End a session: the worker has left, or its stream has. Goes on if it is cancelled."""
        await asyncio.shield(self._begin_release(session))

    def _begin_release(self, session: WorkerSession) -> asyncio.Task[None]:
        if session.release is None:
            session.end()
            self._joining.withdraw(session)
            self._signals.leave(session.attach.spec.queues)
            current = self._sessions.end(session)
            settling = self._departures.settle(session, current)
            session.release_by(self._endings.begin(settling, "session-end"))
        assert session.release is not None
        return session.release

    async def _look(self) -> float:
        now = self._clock.now_ms()
        for session in [*self._sessions.by_worker.values()]:
            session.look(now)
        return LOOK_S * random.uniform(0.9, 1.0)

"""The roster: every worker stream of this server, from attachment to end.

It keeps the registry, the leases and the sessions of one mind: signs of life and counters once a
second, leases renewed in batches while their workers are heard of, cancellations and losses passed
on as the store tells them, and the window in which a worker whose stream broke may come back.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import Any

import structlog

from jobwire_server.domain.background import heard
from jobwire_server.domain.errors import JobwireError, ServerDraining, StoreUnavailable, Superseded
from jobwire_server.domain.ids import JobId
from jobwire_server.domain.model import (
    Assignment,
    Completed,
    Ended,
    Former,
    Renewal,
    Reported,
    WorkerSpec,
    WorkerStatus,
)
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.store import keys
from jobwire_server.store.jobs import Report
from jobwire_server.store.notices import Listener, Notices
from jobwire_server.store.workers import SignOfLife, WorkerStore, superseded
from jobwire_server.workers.dispatcher import QueueDispatcher
from jobwire_server.workers.frames import Attach
from jobwire_server.workers.known_workers import Directory
from jobwire_server.workers.leases import RENEWALS_A_LEASE, LeaseKeeper
from jobwire_server.workers.session import (
    SILENT_INTERVALS,
    GiveBack,
    SessionTimes,
    WorkerSession,
)

log = structlog.get_logger(__name__)

TOUCH_S = 1.0
"""How often signs of life and counters go to the store."""
LOOK_S = 0.25
"""How often sessions are looked at for what time asks of them; a fraction of the shortest claim
timeout that makes sense.
"""
AT_ONCE = 500
"""Workers of one touch."""
LATE_S = 1.0
"""What comes so much later than it was to shows that this server, or the store, stood still."""
JOIN_PATIENCE_S = 1.0
"""How long an attachment waits for each of its queues; workers wait for an answer a few times as
long."""
WORKER_HEARTBEAT_S = 5.0
"""How often a worker says something at least. One that is killed is known by the end of its
connection.
"""
LATE_JOIN_S = 0.5
"""How often a queue is tried that could not be reached then."""

_Leases = list[tuple[str, int]]
"""ULIDs and fencing tokens, of one queue."""


class Roster:
    """The sessions of this server. `start` and `stop` are idempotent.

    Args:
        workers: The registry.
        directory: Where this server's workers are cached.
        notices: The store's channels.
        options: The clockwork.
        clock: The store's time.
        server_id: Of this server.
        lease_ms: Tells the lease of a worker's jobs.
        dispatcher: Finds the dispatcher of a queue.
        complete: Records ends of attempts.
        report: Records progress.
        renew: Renews leases of one queue.
        give_back: Returns undelivered jobs.
        take_back: Ends what a worker holds in a queue, except the jobs named; who held them
            tells as what.
        release_all: Deregisters a worker that leaves by a session, and returns what it holds.
        sweep: Has lost workers' jobs taken back now.
    """

    def __init__(
        self,
        workers: WorkerStore,
        directory: Directory,
        notices: Notices,
        options: BrokerOptions,
        clock: StoreClock,
        server_id: str,
        *,
        lease_ms: Callable[[WorkerSpec], int],
        dispatcher: Callable[[str], QueueDispatcher],
        complete: Callable[[str, Sequence[Ended]], Awaitable[Sequence[Completed | JobwireError]]],
        report: Callable[[str, Sequence[Reported]], Awaitable[Sequence[Renewal]]],
        renew: Callable[[str, Sequence[Report]], Awaitable[Sequence[Renewal]]],
        give_back: GiveBack,
        take_back: Callable[[str, str, set[str], Former], Awaitable[int]],
        release_all: Callable[[str, str, int], Awaitable[int]],
        sweep: Callable[[], Awaitable[None]],
    ) -> None:
        self._workers = workers
        self._directory = directory
        self._notices = notices
        self._options = options
        self._clock = clock
        self._server_id = server_id
        self._lease_ms = lease_ms
        self._dispatcher = dispatcher
        self._complete = complete
        self._report = report
        self._renew = renew
        self._give_back = give_back
        self._take_back = take_back
        self._release_all = release_all
        self._sweep = sweep
        self._sessions: dict[str, WorkerSession] = {}
        self._keeper = LeaseKeeper(self._sessions, renew)
        self._queues: Counter[str] = Counter()
        """How many sessions serve each queue."""
        self._listening: dict[str, Listener] = {}
        self._number = 0
        self._drained_by_ms: int | None = None
        """When the last stream is ended at the latest, once the server drains."""
        self._loops: list[asyncio.Task[None]] = []
        self._chores: set[asyncio.Task[None]] = set()
        self._endings: set[asyncio.Task[None]] = set()
        """What is left to be done for sessions that are over."""
        self._touch_now = asyncio.Event()
        self._renew_now = asyncio.Event()
        self._listen_now = asyncio.Event()
        self._shortest_lease_ms = options.lease_ms

    # ------------------------------------------------------------------- life

    def start(self) -> None:
        """Begins the loops."""
        keeper = self._keeper
        if not self._loops:
            self._loops = [
                asyncio.create_task(work, name=f"roster-{name}")
                for name, work in (
                    ("touch", self._for_ever(self._touch, lambda: TOUCH_S, self._touch_now)),
                    ("look", self._for_ever(self._look, lambda: LOOK_S)),
                    ("renew", self._for_ever(keeper.renew_all, self._renewal_s, self._renew_now)),
                    ("listen", self._for_ever(self._listen, lambda: TOUCH_S, self._listen_now)),
                )
            ]

    async def stop(self) -> None:
        """Ends the loops and what is left of the sessions; tolerates never started."""
        for session in [*self._sessions.values()]:
            session.end(ServerDraining())
            # Whoever holds the stream may come to it only after the store is closed.
            self._begin_release(session)
        # What was promised to workers is done; only then is waiting for them of no more use.
        await asyncio.gather(*self._endings, return_exceptions=True)
        tasks = [*self._loops, *self._chores]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loops = []

    def drain(self, deadline_s: float) -> None:
        """Sends every worker to another server; takes no new ones."""
        self._drained_by_ms = self._clock.now_ms() + round(deadline_s * 1000)
        for session in self._sessions.values():
            self._send_away_if_draining(session)

    def _send_away_if_draining(self, session: WorkerSession) -> None:
        if self._drained_by_ms is None:
            return
        now = self._clock.now_ms()
        left_s = max(0, self._drained_by_ms - now) / 1000
        session.drain(left_s, now, leave=False, reason="the server shuts down", until_idle=True)

    @property
    def draining(self) -> bool:
        """True once the server takes no new streams."""
        return self._drained_by_ms is not None

    @property
    def count(self) -> int:
        """The streams that are attached here."""
        return len(self._sessions)

    @property
    def stuck(self) -> int:
        """Handlers of their workers that do not stop; asked from any thread."""
        return sum(session.stuck for session in list(self._sessions.values()))

    # --------------------------------------------------------------- sessions

    async def attach(self, attach: Attach) -> WorkerSession:
        """Begins a session.

        Raises:
            ServerDraining: Attach to another server.
            StoreUnavailable: The store is away.
            Superseded: The worker has given this attempt up, and a later one counts.
        """
        if self.draining:
            raise ServerDraining
        spec = attach.spec
        self._number += 1
        name = f"{self._server_id}/{self._number}"
        found = await self._workers.attach(spec, name, attach.instance, attach.attempt)
        self._directory.learn(spec, found.status)
        older = self._sessions.get(spec.worker_id)
        if older is not None:
            same = older.attach.instance == attach.instance
            older.end(superseded(spec.worker_id, found.since_ms, same))
        session = WorkerSession(
            attach,
            name,
            found.since_ms,
            self._lease_ms(spec),
            self._times(self._lease_ms(spec)),
            self._complete,
            self._report,
            self._give_back,
            self._directory.set_status,
        )
        session.count_on(found.stats)
        self._sessions[spec.worker_id] = session
        self._queues.update(spec.queues)
        self._listen_now.set()
        try:
            late = await self._take_over(session, attach, found.former)
        except BaseException:
            # Nobody holds the stream yet, so nobody else would end the session.
            self._begin_release(session)
            raise
        if found.status is WorkerStatus.DRAINING:
            self._ask_to_leave(session)
        self._send_away_if_draining(session)
        session.apply_status(found.status)
        for queue in spec.queues:
            if queue not in late:
                self._dispatcher(queue).offer(session.demand)
        for queue, leases in late.items():
            self._spawn(self._join_later(session, queue, leases, found.former))
        self._touch_now.set()
        if session.lease_ms < self._shortest_lease_ms:
            # The keeper sleeps too long for this one.
            self._renew_now.set()
        return session

    async def _take_over(
        self, session: WorkerSession, attach: Attach, former: Former
    ) -> dict[str, _Leases]:
        """Settles what the worker holds: what it names goes on, the rest returns to the queues."""
        named: dict[str, _Leases] = {queue: [] for queue in attach.spec.queues}
        for queue, ulid, token in attach.leases:
            named.setdefault(queue, []).append((ulid, token))
            job_id = f"{queue}-{ulid}"
            if job_id not in session.held:
                session.held[job_id] = token
                session.demand.room -= 1
        # Side by side: the node of one queue may be away, which is no reason not to serve others.
        outcomes = await asyncio.gather(
            *(self._try_join(session, queue, held, former) for queue, held in named.items())
        )
        late = {
            queue: error for queue, error in zip(named, outcomes, strict=True) if error is not None
        }
        if late and len(late) == len(named):
            raise next(iter(late.values()))
        session.greet()
        return {queue: named[queue] for queue in late}

    async def _try_join(
        self, session: WorkerSession, queue: str, leases: _Leases, former: Former
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
        self, session: WorkerSession, queue: str, leases: _Leases, former: Former
    ) -> None:
        """Lets a worker into a queue that could not be reached when it attached."""
        while not session.ended.done():
            await asyncio.sleep(LATE_JOIN_S * random.uniform(0.5, 1.0))
            try:
                await self._join(session, queue, leases, former)
            except JobwireError as error:
                log.debug("queue not joined", queue=queue, error=error.message)
                continue
            # Not before: what was claimed for this stream must not be taken back.
            if queue in session.attach.spec.queues and not session.ended.done():
                self._dispatcher(queue).offer(session.demand)
            return

    async def _join(
        self, session: WorkerSession, queue: str, leases: _Leases, former: Former
    ) -> None:
        """Settles what the worker holds in a queue."""
        if leases:
            reports = [Report(u, session.worker_id, t, session.lease_ms, b"") for u, t in leases]
            renewals = await self._renew(queue, reports)
            for (ulid, token), renewal in zip(leases, renewals, strict=True):
                if renewal.lost:
                    session.lose(f"{queue}-{ulid}", token)
                elif renewal.cancel:
                    session.cancel(renewal.cancel)
        if queue in session.attach.spec.queues:
            keep = {ulid for ulid, _ in leases}
            await self._take_back(queue, session.worker_id, keep, former)

    def hear(self, worker_id: str, arrived: Iterable[tuple[str, int]]) -> None:
        """A call told of a worker; see `WorkerSession.hear`."""
        session = self._sessions.get(worker_id)
        if session is not None:
            session.hear(arrived)

    async def release(self, session: WorkerSession) -> None:
        """Ends a session: the worker has left, or its stream has. Goes on if it is cancelled."""
        await asyncio.shield(self._begin_release(session))

    def _begin_release(self, session: WorkerSession) -> asyncio.Task[None]:
        if session.release is not None:
            return session.release
        session.end()
        for queue in session.attach.spec.queues:
            self._dispatcher(queue).withdraw(session.demand)
        self._queues.subtract(session.attach.spec.queues)
        current = self._sessions.get(session.worker_id) is session
        if current:
            del self._sessions[session.worker_id]
            self._directory.forget(session.worker_id)
        task = heard(asyncio.create_task(self._settle(session, current), name="session-end"))
        session.release = task
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        return task

    async def _settle(self, session: WorkerSession, current: bool) -> None:
        """Does what is left to do for a session that is over."""
        worker_id = session.worker_id
        unsent, sent = session.abandon()
        error = session.ended.exception()
        await session.settle()
        if session.detached and not isinstance(error, Superseded):
            try:
                await self._release_all(worker_id, session.name, session.since_ms)
                return
            except Superseded as newer:
                error = newer
        if isinstance(error, Superseded):
            # What was claimed before the newer stream attached was settled there; of what was
            # claimed since then, acknowledged or not, nobody else knows.
            held = [
                Assignment(JobId(job_id), token, 0, b"") for job_id, token in session.held.items()
            ]
            self._give_back(worker_id, held, int(error.metadata["since_ms"]))
        else:
            self._give_back(worker_id, unsent)
            self._give_back(worker_id, sent, sent=True)
            if current:
                self._spawn(self._await_return(session))

    async def _await_return(self, session: WorkerSession) -> None:
        """Gives a worker the window to come back, then has its jobs taken back."""
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
                if not now_ms or self.draining:
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
                await self._sweep()
        except JobwireError as error:
            # The worker's silence tells the rest to whichever server has the store back first.
            log.warning("window not kept", worker_id=session.worker_id, error=error.message)

    def _times(self, lease_ms: int) -> SessionTimes:
        options = self._options
        # Two of them and an attachment go into the part of a lease that is surely left.
        heartbeat_s = min(options.heartbeat_interval_ms, lease_ms / 6) / 1000
        worker_heartbeat_s = max(heartbeat_s, min(WORKER_HEARTBEAT_S, lease_ms / 6000))
        return SessionTimes(
            heartbeat_s=heartbeat_s,
            worker_heartbeat_s=worker_heartbeat_s,
            silence_s=SILENT_INTERVALS * worker_heartbeat_s,
            claim_timeout_s=options.claim_timeout_ms / 1000,
            age_s=options.max_stream_age_ms / 1000 * random.uniform(0.9, 1.1),
            drain_s=options.drain_deadline_ms / 1000,
        )

    def _ask_to_leave(self, session: WorkerSession) -> None:
        # An operator's wish has no deadline of its own: the worker finishes what it has.
        week_s = 7 * 86_400.0
        session.drain(week_s, self._clock.now_ms(), leave=True, reason="the worker is to leave")

    # ------------------------------------------------------------------ loops

    async def _for_ever(
        self,
        step: Callable[[], Awaitable[None]],
        period_s: Callable[[], float],
        now: asyncio.Event | None = None,
    ) -> None:
        """Takes a step every so often, and at once when there is a reason to."""
        now = now or asyncio.Event()
        while True:
            now.clear()
            try:
                await step()
            except JobwireError as error:
                log.debug("roster step failed", step=step.__name__, error=error.message)
            except Exception:
                log.exception("roster step failed", step=step.__name__)
            with suppress(TimeoutError):
                async with asyncio.timeout(period_s() * random.uniform(0.9, 1.0)):
                    await now.wait()

    def _renewal_s(self) -> float:
        leases = [session.lease_ms for session in self._sessions.values()]
        self._shortest_lease_ms = min([self._options.lease_ms, *leases])
        return self._shortest_lease_ms / 1000 / RENEWALS_A_LEASE

    async def _look(self) -> None:
        now = self._clock.now_ms()
        for session in [*self._sessions.values()]:
            session.look(now)

    async def _touch(self) -> None:
        """Tells the registry who lives, and hears from it who is superseded, drained or unknown."""
        sessions = [s for s in self._sessions.values() if s.renewable]
        for at in range(0, len(sessions), AT_ONCE):
            part = sessions[at : at + AT_ONCE]
            signs = [
                SignOfLife(s.worker_id, s.name, s.since_ms, s.attach.instance, s.stats())
                for s in part
            ]
            for session, status in zip(part, await self._workers.touch(signs), strict=True):
                self._follow(session, status)

    def _follow(self, session: WorkerSession, status: WorkerStatus | Superseded | None) -> None:
        if isinstance(status, Superseded):
            session.end(status)
        elif status is None or status is WorkerStatus.LOST:
            # It was taken for dead while its stream was quiet, or the store lost it; a new
            # attachment settles it.
            session.end(StoreUnavailable("the worker was taken for lost; attach again"))
        else:
            if status is WorkerStatus.DRAINING:
                self._ask_to_leave(session)
            session.apply_status(status)

    # ---------------------------------------------------------------- signals

    async def _listen(self) -> None:
        """Keeps the channels subscribed that concern the sessions there are."""
        wanted = {keys.signals_channel(q): q for q, count in self._queues.items() if count > 0}
        if self._sessions:
            wanted[keys.WORKER_EVENTS] = ""
        # Side by side: the node of one may be away.
        outcomes = await asyncio.gather(
            *(
                self._listen_to(channel, queue)
                for channel, queue in wanted.items()
                if channel not in self._listening
            ),
            return_exceptions=True,
        )
        for channel in [*self._listening.keys() - wanted.keys()]:
            await self._notices.silence(channel, self._listening.pop(channel))
        self._queues += Counter()
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def _listen_to(self, channel: str, queue: str) -> None:
        listener = self._listener(queue)
        await self._notices.listen(channel, listener)
        self._listening[channel] = listener
        if queue:
            # What was said before the subscription is told by a renewal.
            self._check(queue, None)

    def _listener(self, queue: str) -> Listener:
        if not queue:
            return Listener(self._worker_event, self._touch_now.set)
        return Listener(
            lambda data: self._check(queue, data.decode()), lambda: self._check(queue, None)
        )

    def _worker_event(self, data: bytes) -> None:
        worker_id, _, name = data.decode().partition(" ")
        session = self._sessions.get(worker_id)
        if session is not None and session.name != name:
            self._touch_now.set()

    def _check(self, queue: str, ulids: str | None) -> None:
        """Asks the store about leases that something happened to; None: about all of a queue."""
        keeper = self._keeper

        async def ask() -> None:
            try:
                await (keeper.check_queue(queue) if ulids is None else keeper.check(queue, ulids))
            except JobwireError as error:
                log.debug("leases not looked at", queue=queue, error=error.message)

        if self._sessions:
            self._spawn(ask())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        # Not in the name of whichever call happens to start it.
        task = heard(asyncio.create_task(work, name="roster-chore", context=Context()))
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

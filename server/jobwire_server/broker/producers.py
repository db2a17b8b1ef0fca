"""The producers' streams of this server."""

from __future__ import annotations

import random
from time import monotonic

from jobwire_server.broker.cancellations import Cancellations
from jobwire_server.broker.producer_session import ProducerSession, Write
from jobwire_server.broker.submissions import Submissions
from jobwire_server.domain.background import Loop, OwnedTasks
from jobwire_server.domain.errors import ServerDraining, StoreUnavailable
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.watch.follows import Follows

HEARTBEAT_S = 5.0
"""Each side says something at least so often. Whoever waits for an answer asks sooner."""
SILENT_INTERVALS = 3
"""A producer may be silent for so many of them."""
HELD_UP_S = 1.0
"""A producer that is not listened to, and whose question waits, hears something this often."""
LOOK_S = 0.5
"""How often sessions are looked at for what time asks of them."""


class Producers:
    """Opens sessions and lets them go. `start` and `stop` are idempotent.

    Args:
        submissions: Accept jobs.
        cancellations: End them.
        follows: Tell of their ends.
        clock: The store's time.
        options: How long streams live.
        tasks: Go on with what sessions began.
    """

    def __init__(
        self,
        submissions: Submissions,
        cancellations: Cancellations,
        follows: Follows,
        clock: StoreClock,
        options: BrokerOptions,
        tasks: OwnedTasks,
    ) -> None:
        self._submissions = submissions
        self._cancellations = cancellations
        self._follows = follows
        self._clock = clock
        self._options = options
        self._tasks = tasks
        self._sessions: dict[ProducerSession, float] = {}
        """Each with its greatest age, seconds."""
        self._drained_by: float | None = None
        """When the last stream is ended at the latest, once the server drains."""
        self._loop = Loop("producer-look", self._look, error_pause_s=LOOK_S)

    def start(self) -> None:
        """Begin the loop."""
        self._follows.start()
        self._loop.start()

    async def stop(self) -> None:
        """End all sessions and the loop; tolerates never started."""
        for session in [*self._sessions]:
            session.end(ServerDraining())
            self.release(session)
        await self._loop.stop()
        await self._follows.stop()

    def drain(self, deadline_s: float) -> None:
        """Send every producer to another server; take no new ones."""
        if self._drained_by is None:
            self._drained_by = monotonic() + deadline_s
        for session in self._sessions:
            self._send_away(session)

    def _send_away(self, session: ProducerSession) -> None:
        if self._drained_by is not None:
            left_s = max(0.0, self._drained_by - monotonic())
            session.drain(left_s, self._clock.now_ms(), "the server shuts down", when_idle=True)

    @property
    def count(self) -> int:
        """The streams that are open."""
        return len(self._sessions)

    def open(self, write: Write) -> ProducerSession:
        """Begin a session; whoever opens it releases it.

        Raises:
            ServerDraining: Open another at another server.
        """
        if self._drained_by is not None:
            raise ServerDraining
        session = ProducerSession(
            write, self._submissions, self._cancellations, self._follows, self._tasks
        )
        age_s = self._options.max_stream_age_ms / 1000 * random.uniform(0.9, 1.1)
        self._sessions[session] = age_s
        return session

    def release(self, session: ProducerSession) -> None:
        """End a session: its stream is over."""
        self._sessions.pop(session, None)
        session.release()

    async def _look(self) -> float:
        now, silence_s = monotonic(), SILENT_INTERVALS * HEARTBEAT_S
        for session, age_s in [*self._sessions.items()]:
            writing_since = session.writing_since
            if session.ended.done():
                continue
            if now - session.heard_at > silence_s:
                text = f"nothing was heard from the producer for {silence_s:.0f} s"
                session.end(StoreUnavailable(text))
            elif writing_since is not None and now - writing_since > silence_s:
                text = f"the producer has not read its stream for {silence_s:.0f} s"
                session.end(StoreUnavailable(text))
            elif session.drain_until is not None:
                if session.leaves_when_idle and session.idle:
                    session.end(ServerDraining())
                elif now > session.drain_until:
                    text = "the stream was to be left by its deadline"
                    session.end(StoreUnavailable(text))
            elif now - session.born_at > age_s:
                drain_s = self._options.drain_deadline_ms / 1000
                reason = "the stream has reached its age"
                session.drain(drain_s, self._clock.now_ms(), reason, when_idle=False)
            interval_s = HELD_UP_S if session.is_held_up else HEARTBEAT_S
            if writing_since is None and now - session.told_at > interval_s - 2 * LOOK_S:
                session.show_life()
        return LOOK_S * random.uniform(0.9, 1.0)

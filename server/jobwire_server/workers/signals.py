"""Signals: what the store tells of the leases and the workers of the streams here."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable
from contextvars import Context

import structlog

from jobwire_server.domain.background import Loop, OwnedTasks
from jobwire_server.domain.errors import JobwireError
from jobwire_server.store import keys
from jobwire_server.store.notices import Listener, Notices
from jobwire_server.workers.leases import Leases
from jobwire_server.workers.signs_of_life import SignsOfLife

log = structlog.get_logger(__name__)

PERIOD_S = 1.0
"""How often a channel is tried that could not be listened to."""


class Signals:
    """Listens to the channels that concern the sessions of this server. `start` and `stop` are
    idempotent.

    Args:
        notices: The store's channels.
        leases: Asks about leases that something happened to.
        signs: Hears of workers that attached elsewhere.
        tasks: Ask in the background.
    """

    def __init__(
        self, notices: Notices, leases: Leases, signs: SignsOfLife, tasks: OwnedTasks
    ) -> None:
        self._notices = notices
        self._leases = leases
        self._signs = signs
        self._tasks = tasks
        self._queues: Counter[str] = Counter()
        """How many sessions serve each queue."""
        self._sessions = 0
        self._listening: dict[str, Listener] = {}
        self._loop = Loop("stream-signals", self._listen, error_pause_s=PERIOD_S)

    def start(self) -> None:
        """Begin."""
        self._loop.start()

    async def stop(self) -> None:
        """End; tolerates never started."""
        await self._loop.stop()

    def enter(self, queues: Iterable[str]) -> None:
        """Listen for a session that serves these queues."""
        self._sessions += 1
        self._queues.update(queues)
        self._loop.wake()

    def leave(self, queues: Iterable[str]) -> None:
        """Listen no more for a session that served these queues."""
        self._sessions -= 1
        self._queues.subtract(queues)

    @property
    def sessions(self) -> int:
        """For how many sessions it listens."""
        return self._sessions

    async def _listen(self) -> float:
        """Keep the channels subscribed that concern the sessions there are."""
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
        return PERIOD_S * random.uniform(0.9, 1.0)

    async def _listen_to(self, channel: str, queue: str) -> None:
        listener = self._listener(queue)
        await self._notices.listen(channel, listener)
        self._listening[channel] = listener
        if queue:
            # What was said before the subscription is told by a renewal.
            self._check(queue, None)

    def _listener(self, queue: str) -> Listener:
        if not queue:
            return Listener(self._signs.worker_event, self._signs.soon)
        return Listener(
            lambda data: self._check(queue, data.decode()), lambda: self._check(queue, None)
        )

    def _check(self, queue: str, ulids: str | None) -> None:
        """Ask the store about leases that something happened to; None: about all of a queue."""
        leases = self._leases

        async def ask() -> None:
            try:
                await (leases.check_queue(queue) if ulids is None else leases.check(queue, ulids))
            except JobwireError as error:
                log.debug("leases not looked at", queue=queue, error=error.message)

        if self._sessions:
            # Not in the name of the call that happens to begin it.
            self._tasks.begin(ask(), "lease-check", context=Context())

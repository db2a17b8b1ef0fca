"""The dispatcher: demands of this server's workers on one side, one queue on the other.

It sleeps until a demand comes or the store says that jobs became ready, claims for all demands in
one call, and never for more jobs than they can take. One call for a queue is under way at a time,
so that what comes meanwhile goes together in the next.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic

import structlog

from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import Accepted, NewJob
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store import keys
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.notices import Listener, Notices
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.workers.broker_parts import Attempts
from jobwire_server.workers.demand import Demand
from jobwire_server.workers.joint_claims import ANY_ROUTE, JointClaims
from jobwire_server.workers.queue_demands import QueueDemands
from jobwire_server.workers.queue_routes import QueueRoutes
from jobwire_server.workers.queues_in_use import QueuesInUse

Handover = Callable[[int, tuple[int, int]], Awaitable[Sequence[Accepted | JobwireError]]]
"""Submits the jobs that it was made for. Takes retention and limits as
`JointClaims.hand_over` does.
"""

log = structlog.get_logger(__name__)

POLL_S = 2.0
"""The safety net under the notices of ready jobs, which the store delivers at most once."""
QUIET_POLL_S = 60.0
"""The same in a queue that nobody writes to: whoever does so says it first, and wakes us."""
LINGER_S = 30.0
"""How long a queue without demands stays subscribed, because workers come back."""
ERROR_PAUSE_S = 0.2
PATIENCE_S = 0.75
"""How long demands wait for one of their queues before the others go on without it."""
STOP_S = 2.0
"""How long the end waits for a claim that is under way; a store that is slower has its leases end.
"""


class QueueDispatcher:
    """Brings one queue's jobs to the demands of this server.

    Args:
        queue: Its name.
        store: Where jobs are claimed.
        notices: Tell of jobs that became ready.
        options: How long jobs are kept that a claim finds expired.
        settings: The same, where the queue says otherwise.
        attempts: Give back jobs that nobody took.
        in_use: Tells whether anybody writes to the queue.
    """

    def __init__(
        self,
        queue: str,
        store: JobStore,
        notices: Notices,
        options: BrokerOptions,
        settings: QueueSettingsCache,
        attempts: Attempts,
        in_use: QueuesInUse,
    ) -> None:
        self._queue = queue
        self._notices = notices
        self._in_use = in_use
        self._channel = keys.ready_channel(queue)
        self._routes = QueueRoutes(queue, store)
        self.demands = QueueDemands(self._routes)
        self._noticed: set[str] = set()
        """On which routes jobs became ready since the last claim began."""
        self._claims = JointClaims(
            queue,
            store,
            options,
            settings,
            attempts,
            self.demands,
            self._routes,
            self._noticed,
        )
        self._subscribed = False
        self._stopping = False
        self._late = False
        """The look at the queue takes long, or the last one did and failed."""
        self._looks_since: float | None = None
        """When the look began that is under way."""
        self._watch: asyncio.TimerHandle | None = None
        """Goes off when it may have become late; looks that follow each other share it."""
        self.ended = False
        """It has ended for want of demands; the next one begins it again."""
        self._task: asyncio.Task[None] | None = None

    def offer(self, demand: Demand) -> None:
        """Take a demand in and look for jobs at once."""
        self.demands.add(demand)
        if self._late:
            demand.slow(self._queue)
        if self._task is None:
            self.ended = False
            self._in_use.wait(self._queue, self.look_again)
            self._task = asyncio.create_task(self._run(), name=f"dispatch-{self._queue}")

    def withdraw(self, demand: Demand) -> None:
        """Forget a demand; harmless if it is not known."""
        self.demands.remove(demand)

    def notice(self, data: bytes) -> None:
        """Jobs became ready: `<route>:<count>` by commas, or `*` for an unknown number on any
        route.
        """
        if data == b"*":
            self.look_again()
            return
        for part in data.decode().split(","):
            route_id, _, count = part.partition(":")
            self._noticed.add(route_id)
            if route_id not in self._routes.known:
                # A route that is new here: who serves it is known after a look at the store.
                self.look_again()
            else:
                self.demands.heat_for(route_id, int(count))

    def hand_over(self, jobs: Sequence[NewJob]) -> Handover | None:
        """Return the way for a few jobs that are about to be submitted to demands that wait here.

        To be gone at once. None where nobody waits for them, or a claim is made or to be made
        anyway: then they are to be submitted by themselves, and their notice does its work.
        """
        demands = self.demands
        if not demands.idle or demands.hot or self._claims.under_way or self._routes.stale:
            return None
        if self._stopping or self._task is None:
            return None
        wanted: dict[str, int] = {}
        for job in jobs:
            if not job.delay_ms and not job.run_at_ms:
                wanted[job.route.id] = wanted.get(job.route.id, 0) + 1
        if not wanted:
            return None
        reserved = demands.reserve_for(wanted, self._queue)
        if not reserved.demands:
            return None
        if self._watch is None:
            self._watch_for(PATIENCE_S)
        return partial(self._claims.hand_over, reserved, jobs)

    def look_again(self) -> None:
        """Notices may have been missed: look for every demand."""
        self._routes.outdate()
        self._noticed.add(ANY_ROUTE)
        self.demands.heat_all()

    async def stop(self) -> None:
        """End the dispatcher; tolerates never started.

        A call that is under way is heard to its end: the store leases its jobs all the same, and
        only who knows of them can give them back.
        """
        task = self._task
        if task is not None:
            self._stopping = True
            self.demands.wake.set()
            await asyncio.wait({task}, timeout=STOP_S)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await self._claims.finish()
            await self._claims.stop()
            self._stopping = False

    async def _run(self) -> None:
        try:
            while True:
                self._looks_since = monotonic()
                if self._watch is None:
                    self._watch_for(PATIENCE_S)
                try:
                    if not self._subscribed:
                        # Subscribed before the first look, so that no job falls between the two.
                        await self._notices.listen(
                            self._channel, Listener(self.notice, self.look_again)
                        )
                        self._subscribed = True
                    while self._claims.under_way or self._routes.stale:
                        # Routes may have been announced during either.
                        if self._claims.under_way:
                            await self._claims.finish()
                        else:
                            await self._routes.read()
                    if self.demands.hot:
                        await self._claims.claim()
                    self._late = False
                except JobwireError as error:
                    self._fail(error)
                    await asyncio.sleep(ERROR_PAUSE_S * (0.5 + random.random()))
                except Exception as error:
                    log.exception("dispatch failed", queue=self._queue)
                    self._fail(error)
                    await asyncio.sleep(ERROR_PAUSE_S)
                finally:
                    self._looks_since = None
                if self._stopping or (not self.demands.hot and not await self._sleep()):
                    return
        finally:
            self._task = None
            self._in_use.leave(self._queue)

    async def _sleep(self) -> bool:
        """Wait for something to do; False when there has been no demand for long."""
        self.demands.wake.clear()
        # None is hot, or it would not sleep.
        has_demands = bool(self.demands.idle or self.demands.full)
        poll_s = POLL_S if self._queue in self._in_use else QUIET_POLL_S
        try:
            async with asyncio.timeout(
                poll_s * (0.75 + random.random() / 2) if has_demands else LINGER_S
            ):
                await self.demands.wake.wait()
        except TimeoutError:
            if has_demands:
                self.look_again()
            elif not self.demands.hot:
                self._subscribed = False
                await self._notices.silence(self._channel)
                # A demand may have come during the goodbye.
                if not self.demands.hot:
                    self.ended = True
                    return False
        return True

    def _watch_for(self, within_s: float) -> None:
        self._watch = asyncio.get_running_loop().call_later(within_s, self._look_on)

    def _look_on(self) -> None:
        """Let other queues have what demands can take, if a look or a hand-over takes long."""
        self._watch = None
        late_s = monotonic() - PATIENCE_S
        looks_s, call_s = self._looks_since, self._claims.since
        if looks_s is not None and looks_s <= late_s:
            self._late = True
            for demand in [*self.demands.hot]:
                demand.slow(self._queue)
            self._claims.give_up()
            # What it reserves later than this is given back as well.
            self._watch_for(PATIENCE_S)
        elif call_s is not None and call_s <= late_s:
            self._claims.give_up()
            self._watch_for(PATIENCE_S)
        elif looks_s is not None or call_s is not None:
            self._watch_for(min(at for at in (looks_s, call_s) if at is not None) - late_s)

    def _fail(self, error: Exception) -> None:
        self._routes.outdate()
        for demand in [*self.demands.hot]:
            demand.failed(error, self._queue)
            if demand.closed:
                self.demands.remove(demand)

"""The dispatcher: demands of this server's workers on one side, one queue on the other.

It sleeps until a demand comes or the store says that jobs became ready, claims for all demands in
one call, and never for more jobs than they can take. One call for a queue is under way at a time,
so that what comes meanwhile goes together in the next.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable

import structlog

from jobwire_server.domain.decisions.retention import retain_ended_ms
from jobwire_server.domain.decisions.routing import routes_served_by
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import Route
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store import keys
from jobwire_server.store.claims import ClaimRequest
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.notices import Listener, Notices
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.workers.broker_parts import Attempts
from jobwire_server.workers.demand import Demand
from jobwire_server.workers.queues_in_use import QueuesInUse

log = structlog.get_logger(__name__)

POLL_S = 2.0
"""The safety net under the notices of ready jobs, which the store delivers at most once."""
QUIET_POLL_S = 60.0
"""The same in a queue that nobody writes to: whoever does so says it first, and wakes us."""
LINGER_S = 30.0
"""How long a queue without demands stays subscribed, because workers come back."""
MAX_PER_CALL = 500
"""Jobs of one claim; enough to make a round trip cheap, few enough not to hold up the store."""
ERROR_PAUSE_S = 0.2
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
        self._store = store
        self._notices = notices
        self._options = options
        self._settings = settings
        self._give_back = attempts.give_back
        self._in_use = in_use
        self._channel = keys.ready_channel(queue)
        self._idle: dict[Demand, None] = {}
        """Can take jobs, and there were none at the last look."""
        self._full: dict[Demand, None] = {}
        """Can take none; looked for again as soon as they can."""
        self._hot: dict[Demand, None] = {}
        self._woken: set[Demand] = set()
        """Chosen for jobs that were announced, and not claimed for yet."""
        self._wake = asyncio.Event()
        self._routes: dict[str, Route] = {}
        self._served: dict[int, tuple[object, tuple[str, ...]]] = {}
        self._stale_routes = True
        self._noticed: set[str] = set()
        self._subscribed = False
        self._stopping = False
        self.ended = False
        """It has ended for want of demands; the next one begins it again."""
        self._task: asyncio.Task[None] | None = None

    def offer(self, demand: Demand) -> None:
        """Take a demand in and look for jobs at once."""
        self._idle.pop(demand, None)
        self._full.pop(demand, None)
        self._hot[demand] = None
        self._wake.set()
        if self._task is None:
            self.ended = False
            self._in_use.wait(self._queue, self.look_again)
            self._task = asyncio.create_task(self._run(), name=f"dispatch-{self._queue}")

    def withdraw(self, demand: Demand) -> None:
        """Forget a demand; harmless if it is not known."""
        self._idle.pop(demand, None)
        self._full.pop(demand, None)
        self._hot.pop(demand, None)
        demand.skipped.pop(self._heat, None)
        self._served.pop(id(demand.spec), None)
        self._pass_on(demand)

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
            if route_id not in self._routes:
                # A route that is new here: who serves it is known after a look at the store.
                self._stale_routes = True
                self._heat_all()
            else:
                self._heat_for(route_id, int(count))

    def expect(self, routes: Iterable[str]) -> None:
        """Jobs of these routes, one for each entry, are on their way to the store.

        The claim for them goes out right behind their submission, which saves the way of the
        notice. Should it overtake them it finds nothing, and the notice does its work.
        """
        if not self._idle:
            return
        for route_id, count in Counter(routes).items():
            if route_id in self._routes:
                self._heat_for(route_id, count)

    def look_again(self) -> None:
        """Notices may have been missed: look for every demand."""
        self._stale_routes = True
        self._noticed.add("*")
        self._heat_all()

    async def stop(self) -> None:
        """End the dispatcher; tolerates never started.

        A claim that is under way is heard to its end: the store leases its jobs all the same, and
        only who knows of them can give them back.
        """
        task = self._task
        if task is not None:
            self._stopping = True
            self._wake.set()
            await asyncio.wait({task}, timeout=STOP_S)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._stopping = False

    def _heat(self, demand: Demand) -> None:
        for demands in (self._idle, self._full):
            if demand in demands:
                del demands[demand]
                self._hot[demand] = None
                self._wake.set()

    def _heat_all(self) -> None:
        self._hot.update(self._idle)
        self._idle.clear()
        self._wake.set()

    def _pass_on(self, demand: Demand) -> None:
        """Look for the others if the one that was chosen for a job does not take it."""
        if demand in self._woken:
            self._woken.discard(demand)
            self._heat_all()

    def _heat_for(self, route_id: str, count: int) -> None:
        chosen, full = [], []
        for demand in self._idle:
            if count <= 0:
                break
            if not demand.open:
                full.append(demand)
            elif route_id in self._routes_of(demand):
                chosen.append(demand)
                count -= demand.free
        for demand in full:
            self._wait_until_free(demand)
        for demand in chosen:
            self._woken.add(demand)
            self._heat(demand)

    def _routes_of(self, demand: Demand) -> tuple[str, ...]:
        # By identity: a worker that registers anew has a new description.
        known = self._served.get(id(demand.spec))
        if known is None or known[0] is not demand.spec:
            known = (demand.spec, routes_served_by(demand.spec, self._routes.values()))
            self._served[id(demand.spec)] = known
        return known[1]

    async def _run(self) -> None:
        try:
            while True:
                try:
                    if not self._subscribed:
                        # Subscribed before the first look, so that no job falls between the two.
                        await self._notices.listen(
                            self._channel, Listener(self.notice, self.look_again)
                        )
                        self._subscribed = True
                    if self._stale_routes:
                        await self._read_routes()
                    if self._hot:
                        await self._claim()
                except JobwireError as error:
                    self._fail(error)
                    await asyncio.sleep(ERROR_PAUSE_S * (0.5 + random.random()))
                except Exception as error:
                    log.exception("dispatch failed", queue=self._queue)
                    self._fail(error)
                    await asyncio.sleep(ERROR_PAUSE_S)
                if self._stopping or (not self._hot and not await self._sleep()):
                    return
        finally:
            self._task = None
            self._in_use.leave(self._queue)

    async def _sleep(self) -> bool:
        """Wait for something to do; False when there has been no demand for long."""
        self._wake.clear()
        has_demands = bool(self._idle or self._full)
        poll_s = POLL_S if self._queue in self._in_use else QUIET_POLL_S
        try:
            async with asyncio.timeout(
                poll_s * (0.75 + random.random() / 2) if has_demands else LINGER_S
            ):
                await self._wake.wait()
        except TimeoutError:
            if has_demands:
                self.look_again()
            elif not self._idle and not self._full and not self._hot:
                self._subscribed = False
                await self._notices.silence(self._channel)
                # A demand may have come during the goodbye.
                if not self._hot and not self._full:
                    self.ended = True
                    return False
        return True

    async def _read_routes(self) -> None:
        self._stale_routes = False
        try:
            routes = await self._store.routes(self._queue)
        except BaseException:
            self._stale_routes = True
            raise
        if routes.keys() != self._routes.keys():
            self._routes = routes
            self._served.clear()

    def _fail(self, error: Exception) -> None:
        self._stale_routes = True
        for demand in [*self._hot]:
            demand.failed(error)
            if demand.closed:
                self.withdraw(demand)

    async def _claim(self) -> None:
        """One claim for all hot demands."""
        self._noticed.clear()
        share = max(1, MAX_PER_CALL // len(self._hot))
        requests: list[ClaimRequest] = []
        asked: list[Demand] = []
        left = MAX_PER_CALL
        for demand in [*self._hot]:
            if left <= 0:
                break
            if demand.closed:
                self.withdraw(demand)
                continue
            routes = self._routes_of(demand)
            if not routes:
                self._cool(demand)
                demand.dry(self._queue)
                continue
            count = demand.reserve(min(share, left), self._queue)
            if count == 0:
                self._wait_until_free(demand)
                self._pass_on(demand)
                continue
            self._woken.discard(demand)
            left -= count
            worker_id, bound = demand.spec.worker_id, demand.max_bytes
            requests.append(ClaimRequest(worker_id, count, demand.lease_ms, routes, bound))
            asked.append(demand)
        if not requests:
            return
        try:
            retention_ms = retain_ended_ms(self._settings.known(self._queue), self._options)
            answers = await self._store.claim(self._queue, requests, retention_ms, self._give_back)
        except BaseException:
            for request, demand in zip(requests, asked, strict=True):
                demand.unreserve(request.max_jobs)
            raise
        for request, demand, claimed in zip(requests, asked, answers, strict=True):
            got = claimed.assignments
            if got and not demand.deliver(got):
                self._give_back(request.worker_id, got)
            missing = request.max_jobs - len(got)
            if missing > 0 and not claimed.more:
                # Dry, unless jobs came on one of its routes while the call was under way.
                if "*" not in self._noticed and self._noticed.isdisjoint(request.route_ids):
                    self._cool(demand)
                demand.dry(self._queue)
            elif missing > 0 and request.max_bytes:
                # The next one does not fit.
                self._cool(demand)
                demand.dry(self._queue)
            demand.unreserve(missing)
            if demand.closed:
                self.withdraw(demand)
            elif not demand.open:
                self._wait_until_free(demand)

    def _wait_until_free(self, demand: Demand) -> None:
        self._idle.pop(demand, None)
        self._hot.pop(demand, None)
        self._full[demand] = None
        demand.skipped[self._heat] = None

    def _cool(self, demand: Demand) -> None:
        if demand in self._hot:
            del self._hot[demand]
            self._idle[demand] = None

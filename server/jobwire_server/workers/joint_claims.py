"""One claim for all demands of a queue: what each reserves is asked for in one call, alone or
together with a submission.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence, Set
from contextvars import Context
from functools import partial
from time import monotonic

from jobwire_server.domain.background import OwnedTasks
from jobwire_server.domain.decisions.retention import retain_ended_ms
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import Accepted, Assignment, NewJob
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.claims import Claimed
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.workers.broker_parts import Attempts
from jobwire_server.workers.demand import Demand
from jobwire_server.workers.queue_demands import QueueDemands
from jobwire_server.workers.queue_routes import QueueRoutes
from jobwire_server.workers.reserved import Reserved

MAX_PER_CALL = 500
"""Jobs of one claim; enough to make a round trip cheap, few enough not to hold up the store."""
ANY_ROUTE = "*"
"""Stands for every route where it is not known which have jobs."""

EVERY_ROUTE = frozenset({ANY_ROUTE})
AskAgain = Callable[[], Awaitable[tuple[Sequence[Accepted | JobwireError], Sequence[Claimed]]]]
"""Makes one and the same call however often it is called."""


class JointClaims:
    """Claims jobs of a queue for its hot demands, and hands them out.

    Args:
        queue: Its name.
        store: Where jobs are claimed.
        options: How long jobs are kept that a claim finds expired.
        settings: The same, where the queue says otherwise.
        attempts: Give back jobs that nobody took.
        demands: Of the queue.
        routes: Of the queue.
        noticed: On which routes jobs became ready since the claim under way began.
    """

    def __init__(
        self,
        queue: str,
        store: JobStore,
        options: BrokerOptions,
        settings: QueueSettingsCache,
        attempts: Attempts,
        demands: QueueDemands,
        routes: QueueRoutes,
        noticed: set[str],
    ) -> None:
        self._queue = queue
        self._store = store
        self._options = options
        self._settings = settings
        self._give_back = attempts.give_back
        self._demands = demands
        self._routes = routes
        self._noticed = noticed
        self._under_way: Reserved | None = None
        """What the call under way is made for: a claim or a hand-over, one at a time, because the
        store remembers one answer of a server.
        """
        self._at_rest = asyncio.Event()
        """No call is under way."""
        self._at_rest.set()
        self.since: float | None = None
        """When the call under way began, unless it was given up."""
        self._tasks = OwnedTasks()

    @property
    def under_way(self) -> bool:
        """True while the store is asked."""
        return self._under_way is not None

    def give_up(self) -> None:
        """Give back what the call under way has reserved, for other queues; what it brings is
        handed out to whoever can still take it.
        """
        self.since = None
        if self._under_way is not None:
            self._under_way.give_up()

    async def finish(self) -> None:
        """Return once no call is under way."""
        await self._at_rest.wait()

    async def stop(self) -> None:
        """Break off what nobody waits for any more."""
        await self._tasks.cancel()

    async def claim(self) -> None:
        """Make one claim for all hot demands; with no call under way."""
        self._noticed.clear()
        reserved = self._reserve()
        if not reserved.demands:
            return
        self._begin(reserved)
        try:
            retention_ms = retain_ended_ms(self._settings.known(self._queue), self._options)
            brought = await self._store.claim(
                self._queue, reserved.requests, retention_ms, self._give_back
            )
        except BaseException:
            reserved.give_up()
            raise
        finally:
            self._end()
        self._hand_out(reserved, brought, self._noticed)

    async def hand_over(
        self, reserved: Reserved, jobs: Sequence[NewJob], retention_ms: int, limits: tuple[int, int]
    ) -> Sequence[Accepted | JobwireError]:
        """Submit jobs and claim for demands that wait, in one call. Raises as a submission does.

        Args:
            reserved: What was reserved, a moment ago, with no call under way.
            jobs: All of one submission.
            retention_ms: How long jobs are kept that are replaced, or turn out to be expired.
            limits: The most jobs that may wait, and bytes of records; 0: no limit.
        """
        self._begin(reserved)
        number = self._store.next_claim()
        ask = partial(
            self._store.submit_claim,
            *(self._queue, jobs, retention_ms, limits, reserved.requests, number, self._give_back),
        )
        try:
            accepted, brought = await ask()
        except asyncio.CancelledError:
            # The producer is gone, and the store may have leased jobs. Asked again, it says which.
            self._tasks.begin(self._settle(reserved, ask), "hand-over", context=Context())
            raise
        except BaseException:
            self._fail(reserved)
            raise
        self._succeed(reserved, brought)
        # The way to the worker is longer than that to the producer, so its frame goes out first.
        await asyncio.sleep(0)
        return accepted

    async def _settle(self, reserved: Reserved, ask: AskAgain) -> None:
        """Make a hand-over again."""
        try:
            _, brought = await ask()
        except BaseException:
            self._fail(reserved)
            raise
        self._succeed(reserved, brought)

    def _begin(self, reserved: Reserved) -> None:
        self._under_way = reserved
        self._at_rest.clear()
        self.since = monotonic()

    def _end(self) -> None:
        self._under_way = None
        self._at_rest.set()
        self.since = None

    def _fail(self, reserved: Reserved) -> None:
        """A hand-over failed."""
        self._end()
        reserved.give_up()
        # The next claim tells of what was leased all the same.
        for demand in reserved.demands:
            self._demands.heat(demand)

    def _succeed(self, reserved: Reserved, brought: Sequence[Claimed]) -> None:
        """A hand-over was answered."""
        self._end()
        # Whoever was woken meanwhile stays so.
        self._hand_out(reserved, brought, EVERY_ROUTE)
        for request, demand, claimed in reserved.with_answers(brought):
            if claimed.more and demand.open and not request.max_bytes:
                self._demands.heat(demand)

    def _reserve(self) -> Reserved:
        """Reserve what the hot demands can take."""
        demands = self._demands
        reserved = Reserved()
        if not demands.hot:
            return reserved
        share = max(1, MAX_PER_CALL // len(demands.hot))
        left = MAX_PER_CALL
        for demand in [*demands.hot]:
            if left <= 0:
                break
            if demand.closed:
                demands.remove(demand)
                continue
            routes = self._routes.served_by(demand.spec)
            if not routes:
                demands.cool(demand)
                demand.dry(self._queue)
                continue
            count = demand.reserve(min(share, left), self._queue)
            if count == 0:
                demands.skip(demand)
                continue
            demands.woken.discard(demand)
            left -= count
            reserved.add(demand, count, routes)
        return reserved

    def _hand_out(self, reserved: Reserved, brought: Sequence[Claimed], noticed: Set[str]) -> None:
        """Give each demand what came for it.

        Args:
            reserved: What was reserved.
            brought: What came of it.
            noticed: On which routes jobs became ready meanwhile.
        """
        demands, left = self._demands, set[str]()
        for request, demand, claimed in reserved.with_answers(brought):
            got = claimed.assignments
            if reserved.given_up:
                self._deliver_late(request.worker_id, demand, got)
            elif got and not demand.deliver(got):
                self._give_back(request.worker_id, got)
            missing = request.max_jobs - len(got)
            # There are no more, or the next one does not fit.
            if missing > 0 and (not claimed.more or request.max_bytes):
                if ANY_ROUTE not in noticed and noticed.isdisjoint(request.route_ids):
                    demands.cool(demand)
                demand.dry(self._queue)
            if not reserved.given_up:
                demand.unreserve(missing)
            if demand.closed:
                demands.remove(demand)
            elif not demand.open:
                demands.skip(demand)
            if claimed.more and missing == 0 and not demand.open:
                left.update(request.route_ids)
        if left:
            # Announced for somebody who took others: for whoever waits.
            demands.heat_on(left)

    def _deliver_late(self, worker_id: str, demand: Demand, got: list[Assignment]) -> None:
        """Hand out what came after `give_up`, as far as there is room for it again."""
        if not got:
            return
        fitting = demand.reserve(len(got), self._queue)
        taken = fitting and demand.deliver(got[:fitting])
        self._give_back(worker_id, got[fitting:] if taken else got)
        demand.unreserve(0 if taken else fitting)

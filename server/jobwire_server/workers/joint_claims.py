"""One claim for all demands of a queue: what each reserves is asked for in one call."""

from __future__ import annotations

from collections.abc import Set

from jobwire_server.domain.decisions.retention import retain_ended_ms
from jobwire_server.domain.model import Assignment
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.claims import ClaimRequest
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.workers.broker_parts import Attempts
from jobwire_server.workers.demand import Demand
from jobwire_server.workers.queue_demands import QueueDemands
from jobwire_server.workers.queue_routes import QueueRoutes

MAX_PER_CALL = 500
"""Jobs of one claim; enough to make a round trip cheap, few enough not to hold up the store."""
ANY_ROUTE = "*"
"""Stands for every route where it is not known which have jobs."""


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
        noticed: Set[str],
    ) -> None:
        self._queue = queue
        self._store = store
        self._options = options
        self._settings = settings
        self._give_back = attempts.give_back
        self._demands = demands
        self._routes = routes
        self._noticed = noticed
        self._requests: list[ClaimRequest] = []
        self._asked: list[Demand] = []
        """Whom the claim under way is made for, with what is reserved of each."""

    def give_up(self) -> None:
        """Give back what the claim under way has reserved, for other queues; what it brings is
        handed out to whoever can still take it.
        """
        requests, asked, self._requests, self._asked = self._requests, self._asked, [], []
        for request, demand in zip(requests, asked, strict=True):
            demand.unreserve(request.max_jobs)

    async def claim(self) -> None:
        """Make one claim for all hot demands."""
        demands = self._demands
        share = max(1, MAX_PER_CALL // len(demands.hot))
        requests: list[ClaimRequest] = []
        asked: list[Demand] = []
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
            worker_id, bound = demand.spec.worker_id, demand.max_bytes
            requests.append(ClaimRequest(worker_id, count, demand.lease_ms, routes, bound))
            asked.append(demand)
        if not requests:
            return
        self._requests, self._asked = requests, asked
        try:
            retention_ms = retain_ended_ms(self._settings.known(self._queue), self._options)
            answers = await self._store.claim(self._queue, requests, retention_ms, self._give_back)
        except BaseException:
            self.give_up()
            raise
        late = self._asked is not asked
        self._requests, self._asked = [], []
        for request, demand, claimed in zip(requests, asked, answers, strict=True):
            got = claimed.assignments
            if late:
                self._deliver_late(request.worker_id, demand, got)
            elif got and not demand.deliver(got):
                self._give_back(request.worker_id, got)
            missing = request.max_jobs - len(got)
            if missing > 0 and not claimed.more:
                # Dry, unless jobs came on one of its routes while the call was under way.
                noticed = self._noticed
                if ANY_ROUTE not in noticed and noticed.isdisjoint(request.route_ids):
                    demands.cool(demand)
                demand.dry(self._queue)
            elif missing > 0 and request.max_bytes:
                # The next one does not fit.
                demands.cool(demand)
                demand.dry(self._queue)
            if not late:
                demand.unreserve(missing)
            if demand.closed:
                demands.remove(demand)
            elif not demand.open:
                demands.wait_until_free(demand)

    def _deliver_late(self, worker_id: str, demand: Demand, got: list[Assignment]) -> None:
        """Hand out what came after `give_up`, as far as there is room for it again."""
        if not got:
            return
        fitting = demand.reserve(len(got), self._queue)
        taken = fitting and demand.deliver(got[:fitting])
        self._give_back(worker_id, got[fitting:] if taken else got)
        demand.unreserve(0 if taken else fitting)

"""The demands that are offered to one queue, sorted by what is to be done for them next."""

from __future__ import annotations

import asyncio
from collections.abc import Set

from jobwire_server.workers.demand import Demand
from jobwire_server.workers.queue_routes import QueueRoutes
from jobwire_server.workers.reserved import Reserved


class QueueDemands:
    """Knows whom to claim for, and whom a job that became ready concerns.

    A demand is hot while it is to be claimed for, idle once a claim found nothing for it, and full
    while it can take nothing.

    Args:
        routes: Of the queue.
    """

    def __init__(self, routes: QueueRoutes) -> None:
        self._routes = routes
        self.hot: dict[Demand, None] = {}
        """To be claimed for."""
        self.idle: dict[Demand, None] = {}
        """Can take jobs, and there were none at the last look."""
        self.full: dict[Demand, None] = {}
        """Can take none; looked for again as soon as they can."""
        self.woken: set[Demand] = set()
        """Chosen for jobs that were announced, and not claimed for yet."""
        self.wake = asyncio.Event()
        """Set when a demand becomes hot."""

    def add(self, demand: Demand) -> None:
        """Take a demand in, as hot."""
        self.idle.pop(demand, None)
        self.full.pop(demand, None)
        self.hot[demand] = None
        self.wake.set()

    def remove(self, demand: Demand) -> None:
        """Forget a demand; harmless if it is not known."""
        self.idle.pop(demand, None)
        self.full.pop(demand, None)
        self.hot.pop(demand, None)
        demand.skipped.pop(self.heat, None)
        self._routes.forget(demand.spec)
        if demand in self.woken:
            self._pass_on(demand)

    def heat(self, demand: Demand) -> None:
        """Claim for a demand, if it is known."""
        for demands in (self.idle, self.full):
            if demand in demands:
                del demands[demand]
                self.hot[demand] = None
                self.wake.set()

    def heat_all(self) -> None:
        """Claim for every demand that can take jobs."""
        self.hot.update(self.idle)
        self.idle.clear()
        self.wake.set()

    def heat_on(self, route_ids: Set[str]) -> None:
        """Claim for whoever waits for jobs on any of the routes."""
        for demand in [*self.idle]:
            if not route_ids.isdisjoint(self._routes.served_by(demand.spec)):
                self.heat(demand)

    def heat_for(self, route_id: str, count: int) -> None:
        """Claim for as many demands as it takes for so many jobs on a route."""
        chosen, full = [], []
        for demand in self.idle:
            if count <= 0:
                break
            if not demand.open:
                full.append(demand)
            elif route_id in self._routes.served_by(demand.spec):
                chosen.append(demand)
                count -= demand.free
        for demand in full:
            self.wait_until_free(demand)
        for demand in chosen:
            self.woken.add(demand)
            self.heat(demand)

    def reserve_for(self, wanted: dict[str, int], queue: str) -> Reserved:
        """Reserve idle demands for jobs that are on their way, without waking any.

        Args:
            wanted: How many jobs, by the ids of their routes; is counted down.
            queue: Of the jobs.
        """
        reserved, full = Reserved(), []
        for demand in self.idle:
            served = self._routes.served_by(demand.spec)
            most = 0
            for route_id, number in wanted.items():
                if route_id in served:
                    most += number
            if most == 0:
                continue
            count = demand.reserve(most, queue)
            if count == 0:
                full.append(demand)
                continue
            reserved.add(demand, count, served)
            for route_id in [*wanted]:
                if route_id in served:
                    taken = min(count, wanted[route_id])
                    count -= taken
                    wanted[route_id] -= taken
            if not any(wanted.values()):
                break
        for demand in full:
            self.wait_until_free(demand)
        for demand in reserved.demands:
            # To the end: they take turns.
            del self.idle[demand]
            self.idle[demand] = None
        return reserved

    def cool(self, demand: Demand) -> None:
        """There are no jobs for a hot demand: wait until some become ready."""
        if demand in self.hot:
            del self.hot[demand]
            self.idle[demand] = None

    def wait_until_free(self, demand: Demand) -> None:
        """A demand can take nothing now: claim for it as soon as it can."""
        self.idle.pop(demand, None)
        self.hot.pop(demand, None)
        self.full[demand] = None
        demand.skipped[self.heat] = None

    def skip(self, demand: Demand) -> None:
        """As `wait_until_free`, for one that a claim was to be made for."""
        self.wait_until_free(demand)
        if demand in self.woken:
            self._pass_on(demand)

    def _pass_on(self, demand: Demand) -> None:
        """Look for the others, as the one that was chosen for a job does not take it."""
        self.woken.discard(demand)
        self.heat_all()

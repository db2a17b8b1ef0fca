"""What is reserved of the demands of a queue for one call to the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jobwire_server.store.claims import Claimed, ClaimRequest
from jobwire_server.workers.demand import Demand


class Reserved:
    """What is reserved of demands, to be asked for in one call."""

    def __init__(self) -> None:
        self.demands: list[Demand] = []
        self.requests: list[ClaimRequest] = []
        """One for each of the demands."""
        self.given_up = False
        """It was given back before the answer came."""

    def add(self, demand: Demand, count: int, route_ids: tuple[str, ...]) -> None:
        """Ask for jobs that were reserved of a demand."""
        self.demands.append(demand)
        self.requests.append(
            ClaimRequest(demand.spec.worker_id, count, demand.lease_ms, route_ids, demand.max_bytes)
        )

    def with_answers(
        self, brought: Sequence[Claimed]
    ) -> Iterable[tuple[ClaimRequest, Demand, Claimed]]:
        """Return each request with its demand and with what came of it."""
        return zip(self.requests, self.demands, brought, strict=True)

    def give_up(self) -> None:
        """Give everything back; harmless if that was done."""
        if not self.given_up:
            self.given_up = True
            for demand, request in zip(self.demands, self.requests, strict=True):
                demand.unreserve(request.max_jobs)

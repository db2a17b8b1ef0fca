"""Calls of workers that wait for jobs, and whatever ends their wait."""

from __future__ import annotations

from collections.abc import Iterator, Set

from jobwire_server.workers.demand import OneShot


class WaitingCalls:
    """The calls of workers that wait for jobs here."""

    def __init__(self) -> None:
        self._waiting: set[OneShot] = set()

    def add(self, demand: OneShot) -> None:
        """Take note of a call that waits."""
        self._waiting.add(demand)

    def discard(self, demand: OneShot) -> None:
        """Forget a call that waits no more."""
        self._waiting.discard(demand)

    def interrupt(self, worker_ids: Set[str]) -> None:
        """End the calls of these workers, with what they have."""
        for demand in [*self._waiting]:
            if demand.spec.worker_id in worker_ids:
                demand.finish()

    def interrupt_all(self) -> None:
        """End the calls of every worker, with what they have."""
        self.interrupt({demand.spec.worker_id for demand in self._waiting})

    def __iter__(self) -> Iterator[OneShot]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

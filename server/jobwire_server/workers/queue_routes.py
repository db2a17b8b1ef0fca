"""The routes of one queue, and which of them a worker serves."""

from __future__ import annotations

from jobwire_server.domain.decisions.routing import routes_served_by
from jobwire_server.domain.model import Route, WorkerSpec
from jobwire_server.store.jobs import JobStore


class QueueRoutes:
    """Knows the routes of a queue as of the last look at the store.

    Args:
        queue: Its name.
        store: Where routes come to be.
    """

    def __init__(self, queue: str, store: JobStore) -> None:
        self._queue = queue
        self._store = store
        self.known: dict[str, Route] = {}
        """By their ids."""
        self._served: dict[int, tuple[WorkerSpec, tuple[str, ...]]] = {}
        self.stale = True
        """There may be others in the store: to be read before the next claim."""

    def served_by(self, spec: WorkerSpec) -> tuple[str, ...]:
        """Return the ids of the routes whose jobs a worker can do."""
        # By identity: a worker that registers anew has a new description.
        known = self._served.get(id(spec))
        if known is None or known[0] is not spec:
            known = (spec, routes_served_by(spec, self.known.values()))
            self._served[id(spec)] = known
        return known[1]

    def forget(self, spec: WorkerSpec) -> None:
        """Forget which routes a worker serves; harmless if it is not known."""
        self._served.pop(id(spec), None)

    def outdate(self) -> None:
        """There may be other routes in the store by now."""
        self.stale = True

    async def read(self) -> None:
        """Read the queue's routes."""
        # Not behind the read: what is announced meanwhile asks for another one.
        self.stale = False
        try:
            routes = await self._store.routes(self._queue)
        except BaseException:
            self.stale = True
            raise
        if routes.keys() != self.known.keys():
            self.known = routes
            self._served.clear()

"""Routes: which jobs a worker may run.

All jobs of a queue with the same operation and the same requirements wait on one
route, so that matching compares a worker with routes and never with jobs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from jobwire_server.model import WorkerSpec


@dataclass(frozen=True, slots=True)
class Route:
    """An operation with the labels that its jobs require; made by `route_of` only."""

    operation: str
    requirements: tuple[tuple[str, str], ...]
    descriptor: bytes
    """The canonical text of the two, kept in the store."""
    id: str
    """16 hexadecimal digits made of it, the same on every server."""

    def served_by(self, worker: WorkerSpec) -> bool:
        """True if the worker has the operation and every required label."""
        if self.operation not in worker.operations:
            return False
        labels = worker.labels
        return all(labels.get(key) == value for key, value in self.requirements)


# Jobs come on few routes, and most of those have no requirements.
@lru_cache(maxsize=8192)
def _route(operation: str, requirements: tuple[tuple[str, str], ...]) -> Route:
    descriptor = json.dumps(
        [operation, *requirements], ensure_ascii=False, separators=(",", ":")
    ).encode()
    return Route(
        operation, requirements, descriptor, blake2b(descriptor, digest_size=8).hexdigest()
    )


def route_of(operation: str, requirements: Mapping[str, str]) -> Route:
    """Returns the route of a job; the order of its requirements does not matter."""
    return _route(operation, tuple(sorted(requirements.items())) if requirements else ())


def parse_descriptor(descriptor: bytes) -> Route:
    """Reads back the route that a descriptor was made of."""
    operation, *requirements = json.loads(descriptor)
    return _route(operation, tuple((key, value) for key, value in requirements))


def routes_served_by(worker: WorkerSpec, routes: Iterable[Route]) -> tuple[str, ...]:
    """Returns the ids of the routes that the worker may take jobs from, sorted."""
    return tuple(sorted(route.id for route in routes if route.served_by(worker)))

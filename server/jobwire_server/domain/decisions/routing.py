"""Routes: which jobs a worker may run.

All jobs of a queue with the same operation and the same requirements wait on one
route, so that matching compares a worker with routes and never with jobs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b

from jobwire_server.domain.model import Route, WorkerSpec


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
    """Return the route of a job; the order of its requirements does not matter."""
    return _route(operation, tuple(sorted(requirements.items())) if requirements else ())


def parse_descriptor(descriptor: bytes) -> Route:
    """Read back the route that a descriptor was made of."""
    operation, *requirements = json.loads(descriptor)
    return _route(operation, tuple((key, value) for key, value in requirements))


def routes_served_by(worker: WorkerSpec, routes: Iterable[Route]) -> tuple[str, ...]:
    """Return the ids of the routes that the worker may take jobs from, sorted."""
    return tuple(sorted(route.id for route in routes if route.served_by(worker)))

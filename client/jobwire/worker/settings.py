"""What one life of a worker is made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jobwire._connection import ConnectionOptions
from jobwire.context import Context
from jobwire.v1.worker_service_pb2 import WorkerSpec
from jobwire.worker.handlers import Operation
from jobwire.worker.memory import Growth


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a worker is, and how it runs its jobs; fixed from its start to its end."""

    spec: WorkerSpec
    """What the broker is told of it. It runs at most `spec.concurrency` jobs at once."""
    operations: Mapping[str, Operation]
    """The handlers by the operations that they take."""
    prefetch: int | None = 0
    """How many jobs it keeps ready beside those that run; None: as its speed asks."""
    max_abandoned: int = 0
    """How many handlers that do not stop give their slots to others."""
    growth: Growth | None = None
    """Looks after the memory; None: nobody does."""
    on_error: Callable[[Context, BaseException], None] | None = None
    """Called on the event loop with what handlers raise."""
    connection: ConnectionOptions | None = None
    """How the watch of the loop finds the broker; None: it does not speak to it."""

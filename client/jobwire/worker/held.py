"""A job in a worker's hands, and how many there were."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from jobwire.context import Context, StopSignal
from jobwire.output import OutputLog
from jobwire.v1.job_pb2 import Payload, Progress
from jobwire.v1.worker_service_pb2 import Assignment, Completion, LeaseRef
from jobwire.worker.handlers import Operation


class Stage(IntEnum):
    """How far a job is."""

    WAITING = 0
    """Its handler has not begun."""
    RUNNING = 1
    ENDED = 2
    """Its completion waits for the broker's receipt."""


@dataclass(slots=True)
class Saving:
    """A checkpoint that the broker does not have yet, and those who wait for it."""

    payload: Payload
    waiters: list[Future[None]]


class Held:
    """A job from its assignment until its completion is recorded."""

    __slots__ = (
        "assignment",
        "came_at",
        "context",
        "end_timer",
        "ends_at",
        "fencing_token",
        "job_id",
        "newest",
        "next_saving",
        "operation",
        "output",
        "output_at",
        "output_timer",
        "reported_at",
        "saving",
        "signal",
        "stage",
        "task",
        "timer",
        "void",
    )

    def __init__(self, assignment: Assignment, operation: Operation | None, came_at: float) -> None:
        self.assignment = assignment
        self.job_id = assignment.job_id
        self.fencing_token = assignment.fencing_token
        self.operation = operation
        self.came_at = came_at
        self.signal = StopSignal()
        self.stage = Stage.WAITING
        self.void = False
        """The lease is gone or given back: what the handler does counts no more."""
        self.context: Context | None = None
        self.task: asyncio.Task[Any] | None = None
        self.newest: Progress | None = None
        self.reported_at = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.output: OutputLog | None = None
        self.output_timer: asyncio.TimerHandle | None = None
        self.output_at = 0.0
        self.saving: Saving | None = None
        """The checkpoint that is on its way to the broker."""
        self.next_saving: Saving | None = None
        """The one behind it."""
        self.ends_at: float | None = None
        """When its handler is stopped at the latest, in Unix seconds."""
        self.end_timer: asyncio.TimerHandle | None = None

    @property
    def lease(self) -> LeaseRef:
        """Its lease, for the wire."""
        return LeaseRef(job_id=self.job_id, fencing_token=self.fencing_token)

    def completion(self, **outcome: Any) -> Completion:
        """Its completion with the outcome named."""
        return Completion(job_id=self.job_id, fencing_token=self.fencing_token, **outcome)


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What a worker has done since it started."""

    assigned: int = 0
    """Jobs that it was handed."""
    succeeded: int = 0
    """Results that the broker has recorded."""
    failed: int = 0
    """Failures and cancellations that the broker has recorded."""
    released: int = 0
    """Jobs that it gave back."""
    lost: int = 0
    """Leases that it lost."""
    running: int = 0
    """Handlers at work now."""
    waiting: int = 0
    """Jobs that wait for a handler to be free."""

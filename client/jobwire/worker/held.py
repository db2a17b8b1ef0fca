"""A job in a worker's hands, and what it counts."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, Protocol

from jobwire._link import Report
from jobwire._stop import StopSignal
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


class Listener(Protocol):
    """Takes progress, output and checkpoints from handlers; called from any thread."""

    def take_progress(self, held: Held, progress: Progress) -> None:
        """Keep the newest report."""

    def take_output(self, held: Held, urgent: bool) -> None:
        """Note that there is output."""

    def take_checkpoint(self, held: Held, payload: Payload) -> Future[None]:
        """Save a checkpoint; the future is done once the broker has it."""


class Held:
    """A job from its assignment until its completion is recorded, and its handler's `Link`."""

    # Defaults on the class: setting each in every job is a good part of what a short job costs.
    stage = Stage.WAITING
    started_at = 0.0
    """When its handler began, by the loop's clock."""
    void = False
    """True: the lease is lost or released, so what the handler does no longer counts."""
    task: asyncio.Task[Any] | None = None
    """The task of a handler that waits."""
    has_spoken = False
    """There is, or was, something to report."""
    newest: Progress | None = None
    reported_at = 0.0
    timer: asyncio.TimerHandle | None = None
    output: OutputLog | None = None
    output_timer: asyncio.TimerHandle | None = None
    output_at = 0.0
    saving: Saving | None = None
    """The checkpoint that is on its way to the broker."""
    next_saving: Saving | None = None
    """The one behind it."""
    ends_at: float | None = None
    """When its handler is stopped at the latest, in Unix seconds."""
    end_timer: asyncio.TimerHandle | None = None
    stop_timer: asyncio.TimerHandle | None = None
    """Set once it was told to stop: checks later whether it did."""
    _opening = threading.Lock()

    def __init__(
        self,
        assignment: Assignment,
        operation: Operation | None,
        came_at: float,
        listener: Listener,
    ) -> None:
        self.assignment = assignment
        self.job_id = assignment.job_id
        self.fencing_token = assignment.fencing_token
        self.operation = operation
        self.came_at = came_at
        self.signal = StopSignal()
        self._listener = listener

    def report(self, made: Report) -> None:
        """Take progress from the handler."""
        self.take_progress(made.to_proto())

    def take_progress(self, progress: Progress) -> None:
        """Take progress in its wire form."""
        self.has_spoken = True
        self._listener.take_progress(self, progress)

    def open_log(self) -> OutputLog:
        """Return the log of the job's output, always the same one."""
        # Several threads of a handler may write their first piece at once.
        with self._opening:
            if self.output is None:
                self.has_spoken = True
                log = OutputLog(
                    partial(self._listener.take_output, self), lambda: self.signal.is_set
                )
                if self.void:
                    log.close()
                self.output = log
            return self.output

    def save(self, payload: Payload) -> Future[None]:
        """Save a checkpoint; the future is done once the broker has it."""
        self.has_spoken = True
        return self._listener.take_checkpoint(self, payload)

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

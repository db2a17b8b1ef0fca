"""What goes over a worker's stream, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import (
    Assignment,
    CancelNotice,
    Completion,
    LeaseRef,
    WorkerReport,
    WorkerSpec,
    WorkerStatus,
)


@dataclass(frozen=True, slots=True)
class Attach:
    """A worker's first words."""

    spec: WorkerSpec
    instance: str
    """Of the worker's process."""
    leases: Sequence[tuple[str, str, int]]
    """(queue, ULID, fencing token) of the leases that it holds."""
    credits: int
    """How many jobs it may hold."""
    credit_bytes: int
    """How many bytes of records it may hold; 0: no limit."""
    attempt: int = 0
    """The process's number of this attempt to attach; 0: not said."""
    features: frozenset[str] = frozenset()
    """What it supports beyond the first version of the contract, as far as this server knows it."""


class Refused(NamedTuple):
    """A report or completion that was not recorded."""

    job_id: str
    fencing_token: int
    error: JobwireError


@dataclass(slots=True)
class FrameIn:
    """A frame from the worker, checked."""

    sequence: int = 0
    acks: list[LeaseRef] = field(default_factory=list)
    received: int = 0
    """So many frames with assignments have arrived in all; 0: no news."""
    stuck: int | None = None
    """Handlers that do not stop."""
    reports: list[WorkerReport] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    """Those of its reports and completions that have a wrong field."""
    credits: int | None = None
    credit_bytes: int | None = None
    """How many bytes of records the worker may hold from now on; 0: no limit."""
    status: WorkerStatus | None = None
    told: Mapping[str, str] | None = None
    """What the worker tells of itself."""
    detach: bool = False


LEAVE_MS = 7 * 86_400_000
"""An operator's wish that a worker leaves has no deadline of its own: it finishes what it has."""
LEAVE_REASON = "the worker is to leave"


class Receipt(NamedTuple):
    """What became of one frame."""

    sequence: int
    refused: Sequence[Refused]


@dataclass(frozen=True, slots=True)
class DrainNotice:
    """The stream is to be left."""

    deadline_ms: int
    leave: bool
    reason: str


@dataclass(slots=True)
class FrameOut:
    """What the worker is to be told; gathered until the stream takes the next frame."""

    attached: bool = False
    assignments: list[Assignment] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    cancellations: list[CancelNotice] = field(default_factory=list)
    lost: list[LeaseRef] = field(default_factory=list)
    drain: DrainNotice | None = None

    def split(self, at: int) -> FrameOut:
        """Take the assignments from `at` on out of the frame, with what is to be told about them;
        returns the frame to follow.
        """
        rest = FrameOut(assignments=self.assignments[at:])
        later = {assignment.job_id for assignment in rest.assignments}
        del self.assignments[at:]
        rest.cancellations = [c for c in self.cancellations if c.job_id in later]
        rest.lost = [lease for lease in self.lost if lease.job_id in later]
        if rest.cancellations:
            self.cancellations = [c for c in self.cancellations if c.job_id not in later]
        if rest.lost:
            self.lost = [lease for lease in self.lost if lease.job_id not in later]
        return rest

    def __bool__(self) -> bool:
        """True if there is anything to tell."""
        return bool(
            self.attached
            or self.assignments
            or self.receipts
            or self.cancellations
            or self.lost
            or self.drain
        )

"""A worker: what it says of itself, and what the broker knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from jobwire_server.domain.model.attempts import LeaseRef
from jobwire_server.domain.model.states import WorkerStatus


class Former(IntEnum):
    """Who had a worker's id before a stream attached; the numbers are the store's."""

    NOBODY = 0
    SAME = 1
    """The same process."""
    ENDED = 2
    """Another process, whose stream had ended: it is dead."""
    HELD = 3
    """Another process, whose stream held: its id is taken from it."""
    UNHEARD = 4
    """Another process, of unknown fate, because its server is silent."""
    LATER = 5
    """The same process, in a later attempt."""
    LIVES = 6
    """Another process, that is not known to be dead, and it is too late to take its id from it."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is and serves."""

    worker_id: str
    queues: tuple[str, ...]
    operations: frozenset[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    concurrency: int = 0
    lease_ms: int = 0
    client: str = ""
    build_id: str = ""
    """Which build of its program it runs."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as the broker sees it."""

    spec: WorkerSpec
    status: WorkerStatus
    registered_at_ms: int = 0
    last_seen_at_ms: int = 0
    lost_at_ms: int = 0
    attached: bool = False
    """Its stream is connected."""
    server_id: str = ""
    """The server of its stream, or of its last one."""
    credits: int = 0
    assigned: int = 0
    succeeded: int = 0
    failed: int = 0
    stuck: int = 0
    """Handlers that do not stop, by its own count."""
    told: Mapping[str, str] = field(default_factory=dict)
    """What it tells of itself."""
    held_jobs: int = 0
    leases: tuple[LeaseRef, ...] = ()

    @property
    def free(self) -> int | None:
        """How many more jobs it can take now; None: not known."""
        if self.status is not WorkerStatus.READY:
            return 0
        if self.attached:
            # Its credits leave out handlers that do not stop.
            return max(0, self.credits - self.held_jobs)
        if not self.spec.concurrency:
            return None
        return max(0, self.spec.concurrency - self.held_jobs - self.stuck)

"""One worker that talks to this server: what it serves, and what the server remembers of it."""

from __future__ import annotations

from time import monotonic

from jobwire_server.domain.model import WorkerSpec, WorkerStatus
from jobwire_server.workers.frames import LEAVE_MS


class KnownWorker:
    """A worker that talks to this server, as far as the server remembers it."""

    __slots__ = ("_leave_by_ms", "_turn", "changes", "heard_at", "spec", "stale", "status", "stuck")

    def __init__(self, spec: WorkerSpec, status: WorkerStatus) -> None:
        self.spec = spec
        self.status = status
        self.heard_at = monotonic()
        self.changes = 0
        """How often its status was changed through this server."""
        self.stale = False
        """It may have registered anew at another server: read again before the next claim."""
        self.stuck = 0
        """Handlers that do not stop, of a worker that makes calls."""
        self._leave_by_ms = 0
        """Until when it was first told to leave; 0: it was not."""
        self._turn = 0
        """How many claims it made, which says with which of its queues the next one begins."""

    def change(self, status: WorkerStatus) -> None:
        """Its status is another one now."""
        self.status = status
        self._leave_by_ms = 0

    def in_turn(self, queues: tuple[str, ...]) -> tuple[str, ...]:
        """Return the queues of its next claim: each begins behind where the last one began."""
        if len(queues) < 2:
            return queues
        self._turn += 1
        first = self._turn % len(queues)
        return queues[first:] + queues[:first]

    def leave_by(self, now_ms: int) -> int:
        """Return until when it has time to leave, Unix ms: the same for as long as it is to."""
        self._leave_by_ms = self._leave_by_ms or now_ms + LEAVE_MS
        return self._leave_by_ms

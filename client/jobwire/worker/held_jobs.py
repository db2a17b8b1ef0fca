"""All jobs in a worker's hands."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from jobwire.v1.worker_service_pb2 import Completion, LeaseRef
from jobwire.worker.held import Held, Stage, WorkerStats


class HeldJobs:
    """The jobs by id and by stage, and how many there were.

    Attributes:
        by_id: Every job from its assignment until its completion is recorded.
        waiting: Jobs that wait for a free handler, and some that no longer do.
        running: Handlers at work, those of lost leases included.
        void: How many of them are at work in vain.
        unrecorded: How many completions the broker has not recorded yet.
    """

    def __init__(self) -> None:
        self.by_id: dict[str, Held] = {}
        self.waiting: deque[Held] = deque()
        self.running: set[Held] = set()
        self.void = self.unrecorded = 0
        self.assigned = self.lost = 0
        self._succeeded = self._failed = self._released = 0

    @property
    def stats(self) -> WorkerStats:
        """Its counters."""
        return WorkerStats(
            assigned=self.assigned,
            succeeded=self._succeeded,
            failed=self._failed,
            released=self._released,
            lost=self.lost,
            running=len(self.running) - self.void,
            waiting=len(self.unstarted()),
        )

    def find(self, job_id: str, fencing_token: int) -> Held | None:
        """Return the job if it is held under this token."""
        held = self.by_id.get(job_id)
        return held if held is not None and held.fencing_token == fencing_token else None

    def unstarted(self) -> list[Held]:
        """Return the jobs whose handlers have not begun."""
        return [held for held in self.by_id.values() if held.stage is Stage.WAITING]

    def leases(self) -> Sequence[LeaseRef]:
        """Return the leases; those of running jobs first."""
        by_stage = sorted(self.by_id.values(), key=lambda held: held.stage is not Stage.RUNNING)
        return [held.lease for held in by_stage]

    def forget(self, held: Held) -> None:
        """Let go of a job."""
        del self.by_id[held.job_id]
        if held.end_timer is not None:
            held.end_timer.cancel()
        if held.stage is Stage.ENDED:
            self.unrecorded -= 1

    def recorded(self, completions: Iterable[Completion]) -> None:
        """Count completions that the broker has recorded, and let go of their jobs."""
        for completion in completions:
            held = self.find(completion.job_id, completion.fencing_token)
            if held is None:
                continue
            self.forget(held)
            outcome = completion.WhichOneof("outcome")
            if outcome == "success":
                self._succeeded += 1
            elif outcome == "released":
                self._released += 1
            else:
                self._failed += 1

"""The leases that a stream knows of, from the assignment to the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import monotonic

from jobwire_server.domain.model import Assignment
from jobwire_server.workers.byte_credit import ByteCredit


class HeldLeases:
    """The books of one stream: what its worker holds, and what of that has arrived.

    Args:
        credit_bytes: How many bytes of records the worker may hold; 0: no limit.
    """

    def __init__(self, credit_bytes: int) -> None:
        self.tokens: dict[str, int] = {}
        """Job id -> fencing token of every lease."""
        self.bytes = ByteCredit(credit_bytes)
        self._unacknowledged: dict[str, tuple[float, Assignment]] = {}
        """Job id -> when its acknowledgement is overdue, and the assignment; oldest first."""
        self._frames_out = 0
        """Frames with assignments that the stream has taken."""
        self._under_way: deque[tuple[int, Sequence[Assignment]]] = deque()
        """What they brought, until it is acknowledged; oldest first."""
        self._cancelled: set[str] = set()
        """Jobs that the worker was told to stop."""

    def __len__(self) -> int:
        return len(self.tokens)

    def holds(self, job_id: str, fencing_token: int) -> bool:
        """Return whether the worker holds a job with this token."""
        return self.tokens.get(job_id) == fencing_token

    def assign(self, assignments: Sequence[Assignment], claim_timeout_s: float) -> None:
        """Take note of jobs that are on their way."""
        overdue = monotonic() + claim_timeout_s
        for assignment in assignments:
            self.tokens[assignment.job_id] = assignment.fencing_token
            self._unacknowledged[assignment.job_id] = (overdue, assignment)

    def sent(self, assignments: Sequence[Assignment]) -> None:
        """Take note of a frame that the stream has taken."""
        self._frames_out += 1
        self._under_way.append((self._frames_out, assignments))
        # Those whose jobs were acknowledged one by one, or have ended.
        while not any(a.job_id in self._unacknowledged for a in self._under_way[0][1]):
            self._under_way.popleft()
            if not self._under_way:
                break

    def have_arrived(self, frames: int) -> None:
        """So many frames with assignments have arrived in all."""
        while self._under_way and self._under_way[0][0] <= frames:
            for assignment in self._under_way.popleft()[1]:
                # Of what was given back meanwhile the worker hears as of a lost lease.
                self.has_arrived(assignment.job_id, assignment.fencing_token)

    def has_arrived(self, job_id: str, fencing_token: int) -> None:
        """The worker has a job, whether it acknowledged it or not."""
        if self._unacknowledged and self.tokens.get(job_id) == fencing_token:
            self._unacknowledged.pop(job_id, None)

    def acknowledge(self, job_id: str, fencing_token: int) -> bool:
        """The worker acknowledges a job; False if it was given back already."""
        if self.tokens.get(job_id) != fencing_token:
            return False
        self._unacknowledged.pop(job_id, None)
        return True

    def cancel(self, job_id: str, fencing_token: int) -> bool:
        """Return whether the worker is to be told to stop a job: once for each lease."""
        if self.tokens.get(job_id) != fencing_token or job_id in self._cancelled:
            return False
        self._cancelled.add(job_id)
        return True

    def let_go(self, job_id: str, fencing_token: int | None = None) -> bool:
        """Take a job off the books; return whether its credit is to be freed.

        Args:
            job_id: The job.
            fencing_token: Only with this token; None: whatever it is.
        """
        token = self.tokens.get(job_id)
        if token is None or fencing_token not in (None, token):
            return False
        del self.tokens[job_id]
        self._unacknowledged.pop(job_id, None)
        self._cancelled.discard(job_id)
        self.bytes.free(job_id)
        return True

    def keep(self, job_id: str, fencing_token: int) -> bool:
        """Put a job on the books that the worker holds already; False if it is there."""
        if job_id in self.tokens:
            return False
        self.tokens[job_id] = fencing_token
        return True

    def overdue(self) -> list[Assignment]:
        """Return what should have been acknowledged by now, oldest first."""
        now = monotonic()
        overdue: list[Assignment] = []
        for until, assignment in self._unacknowledged.values():
            if until > now:
                break
            overdue.append(assignment)
        return overdue

    def take_unacknowledged(self) -> list[Assignment]:
        """Return what was never acknowledged, for the end of the stream."""
        left = [assignment for _, assignment in self._unacknowledged.values()]
        self._unacknowledged.clear()
        return left

"""Credit in bytes: how large the jobs may be that a worker holds at once."""

from __future__ import annotations

from collections.abc import Sequence

from jobwire_server.domain.model import Assignment

ANY = 1 << 30
"""As many jobs as anybody may ask for."""


class ByteCredit:
    """Keeps the count of the bytes that a worker holds.

    Args:
        most: How many it may hold; 0: no limit. The one job that a worker without any is given
            may be larger.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._sizes: dict[str, int] = {}
        self._held = 0
        self._average = 0.0

    def left(self, holds_jobs: bool) -> int:
        """Return how many more jobs fit, going by their average size."""
        if not self._most:
            return ANY
        if not holds_jobs:
            return max(1, int(self._most / self._average)) if self._average else 1
        left_bytes = self._most - self._held
        if left_bytes <= 0:
            return 0
        # Where nothing is known of their size, one tells.
        return int(left_bytes / self._average) if self._average else 1

    def change(self, most: int) -> None:
        """Set how many bytes the worker may hold; 0: no limit.

        What it was given while there was no limit counts nothing.
        """
        if not most:
            self._sizes.clear()
            self._held = 0
        self._most = most

    def take(self, assignments: Sequence[Assignment], holds_jobs: bool) -> int:
        """Count in as many as fit, from the first on; return how many."""
        if not self._most:
            return len(assignments)
        for at, assignment in enumerate(assignments):
            size = assignment.size
            self._average = 0.9 * self._average + 0.1 * size if self._average else size
            if (holds_jobs or at) and self._held + size > self._most:
                return at
            self._held += size
            self._sizes[assignment.job_id] = size
        return len(assignments)

    def free(self, job_id: str) -> None:
        """Count a job out."""
        if self._sizes:
            self._held -= self._sizes.pop(job_id, 0)

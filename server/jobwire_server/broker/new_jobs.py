"""New jobs: content that was checked gets an id, the stamp of its record, and a digest.

Nothing else names a producer's job or makes its record.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from jobwire_server.domain.ids import JobId
from jobwire_server.domain.model import NewJob, Route
from jobwire_server.domain.records import RecordCodec
from jobwire_server.domain.store_clock import StoreClock


class NewJobs:
    """Makes jobs of checked content.

    Args:
        records: Writes the stamps.
        clock: The store's time.
        new_job_id: Makes the id of a queue's next job.
    """

    def __init__(
        self, records: RecordCodec, clock: StoreClock, new_job_id: Callable[[str], JobId]
    ) -> None:
        self._records = records
        self._now_ms = clock.now_ms
        self._new_job_id = new_job_id
        self._stamp_ms = -1
        self._stamp = b""

    def plain(self, queue: str, route: Route, content: bytes, job_id: JobId) -> NewJob:
        """Return a job that asks for nothing but its operation; '' lets the broker choose its id.

        Nearly all jobs are such ones, so this takes no draft apart.
        """
        if (now := self._now_ms()) != self._stamp_ms:
            self._make_stamp(now)
        return NewJob(job_id or self._new_job_id(queue), queue, route, 0, content + self._stamp)

    def make(self, draft: NewJob, expires_after_ms: int = 0, deadline_after_ms: int = 0) -> NewJob:
        """Return the job of a draft: named if its producer did not, stamped, its request digested.

        Args:
            draft: Its `record` is content without a stamp, in a canonical form if it has a request
                id, whose digest is still empty; its `job_id` may be ''.
            expires_after_ms: Not started later than this long from now; 0: as the draft says.
            deadline_after_ms: FAILED if not finished this long from now; 0: as the draft says.
        """
        if (now := self._now_ms()) != self._stamp_ms:
            self._make_stamp(now)
        request, times = draft.request, b""
        if expires_after_ms or deadline_after_ms:
            expires_at = now + expires_after_ms if expires_after_ms else 0
            deadline = now + deadline_after_ms if deadline_after_ms else 0
            times = self._records.times(expires_at, deadline)
            draft = draft._replace(
                expires_at_ms=expires_at or draft.expires_at_ms,
                deadline_ms=deadline or draft.deadline_ms,
            )
        return draft._replace(
            job_id=draft.job_id or self._new_job_id(draft.queue),
            record=draft.record + times + self._stamp,
            request=request and request._replace(digest=digest_of(draft.record)),
        )

    def _make_stamp(self, now_ms: int) -> None:
        # One moment's jobs share it.
        self._stamp = self._records.stamp(now_ms)
        self._stamp_ms = now_ms


def digest_of(content: bytes) -> str:
    """Return 32 characters that tell one content from another."""
    return blake2b(content, digest_size=16).hexdigest()

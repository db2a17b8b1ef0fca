"""What the broker does with records, whose bytes it never reads itself."""

from __future__ import annotations

from typing import Protocol

from jobwire_server.domain.model import RecordFacts


class RecordCodec(Protocol):
    """Turns fields into the bytes of a record and back.

    A record is the content that a producer wrote, followed by a stamp. Fields may be added to
    content by joining them to it, before the stamp, so that nothing needs to be read for it.
    """

    def stamp(self, created_at_ms: int) -> bytes:
        """Return what makes content a record: when it was accepted, and the layout's version."""

    def times(self, expires_at_ms: int, deadline_ms: int) -> bytes:
        """Return what is joined to content whose times are durations: the moments that they come
        to, Unix ms, 0 for none.
        """

    def scheduled_stamp(
        self,
        schedule_id: str,
        due_ms: int,
        created_at_ms: int,
        expires_at_ms: int = 0,
        deadline_ms: int = 0,
    ) -> bytes:
        """Return the stamp of a schedule's job, which also names the schedule and its moment, and
        the moments that its durations come to.
        """

    def facts(self, record: bytes) -> RecordFacts:
        """Return what matching and filters need to know."""

    def same_content(self, one: bytes, other: bytes) -> bool:
        """Return whether two records differ in nothing that their producer wrote."""

"""Actions on many jobs, as Python values."""

from __future__ import annotations

from dataclasses import dataclass

from jobwire.v1 import job_service_pb2


@dataclass(frozen=True, slots=True)
class BulkProgress:
    """How far an action on many jobs is."""

    matched: int
    """Jobs that matched so far."""
    changed: int
    """Of those, how many were changed; in a dry run, how many could be."""
    skipped: int
    """Of those, how many could not be: they had moved on, or are held back by a unique key."""
    sample_job_ids: tuple[str, ...]
    """Some of the jobs that were changed since the last progress, at most 100."""
    done: bool
    """True: the action has ended."""

    @classmethod
    def from_proto(
        cls, proto: job_service_pb2.BulkProgress, changed_before: int = 0
    ) -> BulkProgress:
        """Read the wire's form; `changed_before` were changed by calls that were cut off."""
        return cls(
            matched=changed_before + proto.matched,
            changed=changed_before + proto.changed,
            skipped=proto.skipped,
            sample_job_ids=tuple(proto.sample_job_ids),
            done=proto.done,
        )

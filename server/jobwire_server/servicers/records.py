"""The one codec of records: serialized `jobwire.v1.JobSpec` messages.

The broker is given it when it is built. Messages in this form may be joined end to end, so that a
stamp is added to content without reading it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from jobwire.v1 import job_pb2
from jobwire_server.domain.model import RecordFacts

SCHEMA_VERSION = 1
RESERVED_LABELS = "jobwire."
"""What the keys of the broker's own labels begin with."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class JobSpecRecords:
    """Reads and writes records; a `RecordCodec`."""

    def stamp(self, created_at_ms: int) -> bytes:
        """Return the stamp of a job that is accepted at a moment."""
        return _stamp(created_at_ms).SerializeToString()

    def scheduled_stamp(self, schedule_id: str, due_ms: int, created_at_ms: int) -> bytes:
        """Return the stamp of a schedule's job: also two labels."""
        spec = _stamp(created_at_ms)
        spec.labels[f"{RESERVED_LABELS}schedule"] = schedule_id
        spec.labels[f"{RESERVED_LABELS}due"] = due_text(due_ms)
        return spec.SerializeToString()

    def facts(self, record: bytes) -> RecordFacts:
        """Return what matching and filters need to know of a record."""
        spec = job_pb2.JobSpec.FromString(record)
        return RecordFacts(
            operation=spec.operation,
            requirements=dict(spec.requirements),
            priority=spec.priority,
            labels=dict(spec.labels),
            created_at_ms=_ms(spec.created_at),
        )

    def same_content(self, one: bytes, other: bytes) -> bool:
        """Return whether two records differ in their stamps alone."""
        specs = job_pb2.JobSpec.FromString(one), job_pb2.JobSpec.FromString(other)
        for spec in specs:
            drop_stamp(spec)
        return specs[0] == specs[1]


def created_at_ms(record: bytes) -> int:
    """Return when a record was accepted, Unix milliseconds."""
    return _ms(job_pb2.JobSpec.FromString(record).created_at)


def without_payload(record: bytes) -> bytes:
    """Return a record without its payload."""
    spec = job_pb2.JobSpec.FromString(record)
    spec.ClearField("payload")
    return spec.SerializeToString()


def drop_stamp(spec: job_pb2.JobSpec) -> None:
    """Clear the fields of a stamp; a producer's own values of them count for nothing."""
    spec.ClearField("created_at")
    spec.ClearField("schema_version")


def due_text(ms: int) -> str:
    """Return a moment in RFC 3339, UTC, with milliseconds where there are any."""
    at = _EPOCH + timedelta(milliseconds=ms)
    precision = "milliseconds" if ms % 1000 else "seconds"
    return at.isoformat(timespec=precision).replace("+00:00", "Z")


def _stamp(ms: int) -> job_pb2.JobSpec:
    moment = Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)
    return job_pb2.JobSpec(created_at=moment, schema_version=SCHEMA_VERSION)


def _ms(moment: Timestamp) -> int:
    return moment.seconds * 1000 + moment.nanos // 1_000_000

"""The one codec of records: a serialized `jobwire.v1.JobSpec`, and after it a stamp of 9 bytes.

The broker is given it when it is built. Serialized messages may be joined end to end, so that
fields are added to content without reading it; the stamp stays the last part.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from struct import Struct

from google.protobuf.timestamp_pb2 import Timestamp

from jobwire.v1 import job_pb2
from jobwire_server.domain.model import RecordFacts

LAYOUT_VERSION = 2
"""Of records; the last byte of each."""
RESERVED_LABELS = "jobwire."
"""What the keys of the broker's own labels begin with."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STAMP = Struct("<qB")
"""When the job was accepted, Unix milliseconds; the layout."""
STAMP_BYTES = _STAMP.size


class JobSpecRecords:
    """Reads and writes records; a `RecordCodec`."""

    def stamp(self, created_at_ms: int) -> bytes:
        """Return the stamp of a job that is accepted at a moment."""
        return _STAMP.pack(created_at_ms, LAYOUT_VERSION)

    def scheduled_stamp(self, schedule_id: str, due_ms: int, created_at_ms: int) -> bytes:
        """Return what makes a record of a schedule's content: two labels and the stamp."""
        spec = job_pb2.JobSpec()
        spec.labels[f"{RESERVED_LABELS}schedule"] = schedule_id
        spec.labels[f"{RESERVED_LABELS}due"] = due_text(due_ms)
        return spec.SerializeToString() + self.stamp(created_at_ms)

    def facts(self, record: bytes) -> RecordFacts:
        """Return what matching and filters need to know of a record."""
        spec = job_pb2.JobSpec.FromString(content_of(record))
        return RecordFacts(
            operation=spec.operation,
            requirements=dict(spec.requirements),
            priority=spec.priority,
            labels=dict(spec.labels),
            created_at_ms=created_at_ms(record),
        )

    def same_content(self, one: bytes, other: bytes) -> bool:
        """Return whether two records differ in their stamps alone."""
        one, other = content_of(one), content_of(other)
        # A map may be written in any order.
        return one == other or job_pb2.JobSpec.FromString(one) == job_pb2.JobSpec.FromString(other)


def content_of(record: bytes) -> bytes:
    """Return the serialized JobSpec of a record."""
    return record[:-STAMP_BYTES]


def created_at_ms(record: bytes) -> int:
    """Return when a record was accepted, Unix milliseconds."""
    at: int = _STAMP.unpack_from(record, len(record) - STAMP_BYTES)[0]
    return at


@lru_cache(maxsize=1024)
def moment_of(stamp: bytes) -> bytes:
    """Return the serialized Timestamp of a stamp; jobs of one batch have the same."""
    ms: int = _STAMP.unpack(stamp)[0]
    moment = Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)
    return moment.SerializeToString()


def without_content(record: bytes) -> bytes:
    """Return the serialized JobSpec of a record without what a BASIC view leaves out."""
    spec = job_pb2.JobSpec.FromString(content_of(record))
    spec.ClearField("payload")
    spec.ClearField("headers")
    return spec.SerializeToString()


def due_text(ms: int) -> str:
    """Return a moment in RFC 3339, UTC, with milliseconds where there are any."""
    at = _EPOCH + timedelta(milliseconds=ms)
    precision = "milliseconds" if ms % 1000 else "seconds"
    return at.isoformat(timespec=precision).replace("+00:00", "Z")

"""The one codec of records: a serialized `jobwire.v1.JobSpec`, and after it a stamp of 9 bytes.

The broker is given it when it is built. Serialized messages may be joined end to end, so that
fields are added to content without reading it; the stamp stays the last part.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from struct import Struct
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
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
_PRIORITY = job_pb2.JobSpec.DESCRIPTOR.fields_by_name["priority"].number


class JobSpecRecords:
    """Reads and writes records; a `RecordCodec`."""

    def stamp(self, created_at_ms: int) -> bytes:
        """Return the stamp of a job that is accepted at a moment."""
        return _STAMP.pack(created_at_ms, LAYOUT_VERSION)

    def times(self, expires_at_ms: int, deadline_ms: int) -> bytes:
        """Return what joins content whose times are durations: the moments that they come to.

        Of a oneof the field that comes last counts, so that whoever reads the record finds the
        moments, while the durations that the producer wrote are still there.
        """
        spec = job_pb2.JobSpec()
        for field, ms in ((spec.expires_at, expires_at_ms), (spec.deadline, deadline_ms)):
            if ms:
                field.FromMilliseconds(ms)
        return spec.SerializeToString()

    def scheduled_stamp(
        self,
        schedule_id: str,
        due_ms: int,
        created_at_ms: int,
        expires_at_ms: int = 0,
        deadline_ms: int = 0,
    ) -> bytes:
        """Return what makes a record of a schedule's content: its times, two labels, the stamp."""
        spec = job_pb2.JobSpec.FromString(self.times(expires_at_ms, deadline_ms))
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
        """Return whether two records differ in nothing that their producer wrote."""
        one, other = content_of(one), content_of(other)
        # A map may be written in any order, and durations come to other moments each time.
        return one == other or _as_written(one) == _as_written(other)


def _as_written(content: bytes) -> job_pb2.JobSpec:
    """Return content as its producer wrote it: with durations where `times` added moments."""
    spec = job_pb2.JobSpec.FromString(content)
    apart = _Times.FromString(content)
    for moment, duration in (("expires_at", "expires_after"), ("deadline", "deadline_after")):
        if apart.HasField(duration):
            spec.ClearField(moment)  # type: ignore[arg-type]
            getattr(spec, duration).ParseFromString(getattr(apart, duration))
    return spec


def _times_message() -> Any:
    """Return a message of the durations alone: a JobSpec keeps but the last field of a oneof."""
    file = descriptor_pb2.FileDescriptorProto(name="jobwire/times.proto", syntax="proto2")
    message = file.message_type.add(name="Times")
    for name in ("expires_after", "deadline_after"):
        number = job_pb2.JobSpec.DESCRIPTOR.fields_by_name[name].number
        message.field.add(
            name=name,
            number=number,
            type=descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
            label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Times"))


_Times = _times_message()


def content_of(record: bytes) -> bytes:
    """Return the serialized JobSpec of a record."""
    return record[:-STAMP_BYTES]


def created_at_ms(record: bytes) -> int:
    """Return when a record was accepted, Unix milliseconds."""
    at: int = _STAMP.unpack_from(record, len(record) - STAMP_BYTES)[0]
    return at


def priority_of(record: bytes) -> int:
    """Return the priority that a record asks for, 0 for none, without reading what else it holds.

    Fields are written in the order of their numbers, so that it is found behind a payload of any
    size, which a message would copy.
    """
    at, end = 0, len(record) - STAMP_BYTES
    while at < end:
        tag, at = _varint(record, at)
        if tag >> 3 > _PRIORITY:
            return 0
        value, at = _varint(record, at)
        if tag >> 3 == _PRIORITY:
            return value
        at += value
    return 0


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


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

"""What the broker adds to the record of a scheduled job.

A record is a serialized `jobwire.v1.JobSpec`. Messages in that form may be joined end to end, so
that fields are added without reading what is there.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

SCHEMA_VERSION = 1
RESERVED_LABELS = "jobwire."
"""What the keys of the broker's own labels begin with."""

_LABELS, _CREATED_AT, _SCHEMA_VERSION = 5, 14, 15
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def due_text(ms: int) -> str:
    """Returns a moment in RFC 3339, UTC, with milliseconds where there are any."""
    at = _EPOCH + timedelta(milliseconds=ms)
    precision = "milliseconds" if ms % 1000 else "seconds"
    return at.isoformat(timespec=precision).replace("+00:00", "Z")


def scheduled_suffix(schedule_id: str, due_ms: int, created_at_ms: int) -> bytes:
    """Returns what makes a record of a schedule's job: labels, time of acceptance, version."""
    stamp = _number(1, created_at_ms // 1000) + _number(2, created_at_ms % 1000 * 1_000_000)
    return b"".join(
        (
            _label("jobwire.schedule", schedule_id),
            _label("jobwire.due", due_text(due_ms)),
            _bytes(_CREATED_AT, stamp),
            _number(_SCHEMA_VERSION, SCHEMA_VERSION),
        )
    )


def _label(key: str, value: str) -> bytes:
    return _bytes(_LABELS, _bytes(1, key.encode()) + _bytes(2, value.encode()))


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)

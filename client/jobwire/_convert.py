"""Times and enums to and from their protobuf forms."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

Seconds: TypeAlias = float | timedelta
"""A span of time: a number of seconds or a timedelta."""


def to_duration(span: Seconds) -> Duration:
    """Makes a Duration, exact to the microsecond."""
    duration = Duration()
    duration.FromTimedelta(span if isinstance(span, timedelta) else timedelta(seconds=span))
    return duration


def to_timestamp(moment: datetime) -> Timestamp:
    """Makes a Timestamp.

    Raises:
        ValueError: The moment has no time zone, so that it means another one on each machine.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone: add one, such as datetime.UTC")
    timestamp = Timestamp()
    timestamp.FromDatetime(moment.astimezone(UTC))
    return timestamp


def from_duration(duration: Duration) -> timedelta:
    """Returns the span, exact to the microsecond."""
    return duration.ToTimedelta()


def from_timestamp(timestamp: Timestamp) -> datetime:
    """Returns the moment in UTC, exact to the microsecond."""
    return timestamp.ToDatetime(tzinfo=UTC)

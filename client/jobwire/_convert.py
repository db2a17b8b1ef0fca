"""Times and enums to and from their protobuf forms."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeAlias

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

Seconds: TypeAlias = float | timedelta
"""A span of time: a number of seconds or a timedelta."""
Timeout: TypeAlias = Seconds | None
"""How long to wait at most; None and infinity: no limit."""

# Longer means no limit: clocks and timers of 64-bit nanoseconds overflow at 292 years.
_WITHOUT_END_S = 100 * 365 * 86_400.0


class OpenEnum(StrEnum):
    """An enum of the contract. A number that this release has no name for is shown as the number:
    servers may be newer.
    """

    @classmethod
    def _missing_(cls, value: object) -> OpenEnum | None:
        if not isinstance(value, str) or not _NUMBER.fullmatch(value):
            return None
        made = str.__new__(cls, value)
        made._name_ = made._value_ = value
        # The same object for the same number, as for members.
        return _UNNAMED.setdefault((cls, value), made)

    def __reduce_ex__(self, protocol: object) -> tuple[type[OpenEnum], tuple[str]]:
        # By its value: until Python 3.11.4 an enum is pickled by its name, which not all here have.
        return type(self), (self._value_,)

    @property
    def is_named(self) -> bool:
        """False for what only a later release has a name for."""
        return self._name_ in type(self).__members__


_NUMBER = re.compile("-?[0-9]{1,10}")
_UNNAMED: dict[tuple[type[OpenEnum], str], OpenEnum] = {}


def seconds_or_none(name: str, timeout: Timeout) -> float | None:
    """Return a timeout in seconds; None for no limit.

    Args:
        name: What the argument is called, for the error.
        timeout: As the caller gave it.

    Raises:
        TypeError: It is neither a number nor a timedelta.
        ValueError: It is negative, or not a number.
    """
    if timeout is None:
        return None
    seconds = _seconds(name, timeout)
    if not seconds >= 0:  # nan, too
        raise ValueError(f"{name} is {timeout}; it must be 0 or more, or None for no limit")
    return None if seconds > _WITHOUT_END_S else seconds


def _seconds(name: str, span: object) -> float:
    if isinstance(span, timedelta):
        return span.total_seconds()
    if isinstance(span, int | float) and not isinstance(span, bool):
        return float(span)
    raise TypeError(f"{name} is {span!r}; it must be a number of seconds or a timedelta")


def to_duration(span: Seconds, name: str = "the span of time") -> Duration:
    """Make a Duration, exact to the microsecond.

    Args:
        span: Seconds or a timedelta.
        name: What the argument is called, for the error.

    Raises:
        TypeError: It is neither.
        ValueError: It is not a finite number, or too large.
    """
    if not isinstance(span, timedelta):
        try:
            span = timedelta(seconds=_seconds(name, span))
        except (ValueError, OverflowError):
            raise ValueError(f"{name} is {span}; it must be a finite span of time") from None
    duration = Duration()
    duration.FromTimedelta(span)
    return duration


def to_timestamp(moment: datetime) -> Timestamp:
    """Make a Timestamp.

    Raises:
        ValueError: The moment has no time zone, so that it means another one on each machine.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone: add one, such as datetime.UTC")
    timestamp = Timestamp()
    timestamp.FromDatetime(moment.astimezone(UTC))
    return timestamp


def from_duration(duration: Duration) -> timedelta:
    """Return the span, exact to the microsecond."""
    return duration.ToTimedelta()


def from_timestamp(timestamp: Timestamp) -> datetime:
    """Return the moment in UTC, exact to the microsecond."""
    return timestamp.ToDatetime(tzinfo=UTC)


def moment_of(message: Any, field: str) -> datetime | None:
    """Return a message's Timestamp field in UTC; None if it is unset."""
    return from_timestamp(getattr(message, field)) if message.HasField(field) else None


def span_of(message: Any, field: str) -> timedelta | None:
    """Return a message's Duration field; None if it is unset."""
    return from_duration(getattr(message, field)) if message.HasField(field) else None

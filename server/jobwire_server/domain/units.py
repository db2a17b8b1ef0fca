"""Durations, sizes and addresses as people write them."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")


def parse_duration(value: object) -> timedelta:
    """Read ``500ms``, ``30s``, ``1h30m`` or ``14d``; 0 needs no unit.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, timedelta):
        return value
    text = str(value).strip().replace(" ", "")
    if text == "0":
        return timedelta()
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration: write it like 500ms, 30s, 5m, 1h30m or 14d")
    total = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    return timedelta(milliseconds=total)


def format_duration(value: timedelta) -> str:
    """The shortest form that `parse_duration` reads back: 1.5 ms, 30s, 14d."""
    ms = value / timedelta(milliseconds=1)
    for unit, size in reversed(_UNITS.items()):
        if ms >= size and ms % size == 0:
            return f"{ms / size:g}{unit}"
    return f"{ms:g}ms" if ms else "0"


def format_size(value: int) -> str:
    """The shortest form with a binary unit: 16MiB, 1KiB, 100B."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size and value % size == 0:
            return f"{value // size}{unit}"
    return f"{value}B"


def parse_address(value: str) -> tuple[str, int]:
    """Split HOST:PORT; IPv6 hosts stand in brackets. Port 0: a free one.

    Raises:
        ValueError: It is something else.
    """
    match = re.fullmatch(r"(\[[0-9a-fA-F:.%]+\]|[^\s:\[\]]*):(\d{1,5})", value)
    if match is None or int(match[2]) > 65_535:
        raise ValueError(f"{value!r} is not HOST:PORT, for example 0.0.0.0:50051 or [::]:50051")
    return match[1] or "0.0.0.0", int(match[2])


def printable(text: str) -> str:
    """The text with everything escaped that is no sign to be seen, bytes that are no text too.

    For names that come from outside, such as paths: they are shown to people, in one line.
    """
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )

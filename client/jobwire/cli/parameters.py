"""Types of options: spans, moments, `KEY=VALUE`, payloads."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import click

from jobwire.cli.terminal import closed_at_start
from jobwire.payloads import Payload

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_BITS = {"B": 0, "K": 10, "M": 20, "G": 30}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
# Ten times what the broker accepts anywhere; moments and messages can't hold more.
_LONGEST_D = 36_500
MOST = 2**63 - 1
"""The largest number that the store counts with."""


class TooLong(ValueError):
    """A duration that is too long for anything."""


def parse_duration(text: str) -> float:
    """Read `1h30m`, `250ms` or a bare number of seconds, and return seconds.

    Raises:
        TooLong: It is more than 36500 days.
        ValueError: It is not a duration.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text)
    else:
        parts = _PART.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ValueError(f"{text!r} is not a duration: write 250ms, 10s, 5m, 1h30m or 2d")
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if seconds > _LONGEST_D * _UNITS_S["d"]:
        raise TooLong(f"{text!r} is too long: it may be at most {_LONGEST_D}d")
    return seconds


# The functions below are the types of options; their names are what --help shows.


def duration(text: str) -> float:
    """A span of time; becomes seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def positive_duration(text: str) -> float:
    """A span of time above 0; becomes seconds."""
    seconds = duration(text)
    if not seconds:
        raise click.BadParameter(f"{text!r} must be more than 0: write 500ms or 10s")
    return seconds


def count(text: str | int) -> int:
    """A number of things, from 0 to the largest that the store counts with."""
    if not re.fullmatch("[0-9]+", str(text), re.ASCII):
        raise click.BadParameter(f"{text!r} is not a number from 0 up")
    if (number := int(str(text)[:4000])) > MOST:
        raise click.BadParameter(f"{text!r} is too large: it may be at most {MOST}")
    return number


def size(text: str) -> int:
    """A number of bytes, such as 64KiB, 4MiB or 1GiB."""
    found = re.fullmatch(r"(\d+)([KMG]i?B?|B)?", text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is not a size: write 65536, 64KiB, 4MiB or 1GiB")
    count = int(found[1]) << _SIZE_BITS[(found[2] or "B")[0]]
    if count > MOST:
        raise click.BadParameter(f"{text!r} is too large: it may be at most {MOST >> 30}GiB")
    return count


def time(text: str) -> datetime:
    """A point in time in RFC 3339 form; without a zone it is local time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a time: write 2030-01-31T08:00:00Z") from error
    return moment if moment.tzinfo else moment.astimezone()


def time_or_span(text: str) -> datetime | timedelta:
    """A point in time, or a span of time from now."""
    try:
        return timedelta(seconds=parse_duration(text))
    except TooLong as error:
        raise click.BadParameter(str(error)) from error
    except ValueError:
        pass
    try:
        return time(text)
    except click.BadParameter as error:
        raise click.BadParameter(
            f"{text!r} is neither a time nor a duration: write 2030-01-31T08:00:00Z or 2h"
        ) from error


def past(text: str) -> datetime:
    """A point in time, or a span of time ago."""
    found = time_or_span(text)
    return datetime.now(UTC) - found if isinstance(found, timedelta) else found


def span_or_default(text: str) -> float | Literal["default"]:
    """A span of time, or `default`, which removes a setting."""
    return "default" if text.strip().lower() == "default" else duration(text)


def key_value(text: str) -> tuple[str, str]:
    """`KEY=VALUE`; becomes a pair."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE")
    return key, value


def words(values: tuple[str, ...]) -> click.Choice[str]:
    """Return a choice among the words of the contract, with dashes as the command line has them."""
    return click.Choice([value.replace("_", "-") for value in values])


def read_payload(argument: str | None, *, as_bytes: bool) -> Payload:
    """Read the PAYLOAD argument: text, `@FILE`, or `-` for standard input.

    Args:
        argument: None gives an empty payload.
        as_bytes: True sends it as bytes, False as JSON, which the server checks.

    Raises:
        click.UsageError: The file can't be read, or its JSON is not UTF-8.
    """
    if argument is None:
        return Payload()
    if argument == "-":
        if "stdin" in closed_at_start:
            raise click.UsageError("standard input, which should hold the payload, is closed")
        data = sys.stdin.buffer.read()
    elif argument.startswith("@"):
        try:
            data = Path(argument[1:]).read_bytes()
        except OSError as error:
            raise click.UsageError(
                f"the payload {argument[1:]!r} can't be read: {error.strerror}"
            ) from error
    else:
        data = argument.encode("utf-8", "surrogateescape")
    if as_bytes:
        return Payload(data=data)
    try:
        return Payload(json=data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise click.UsageError(f"the payload is not UTF-8 text ({error}): use --bytes") from error

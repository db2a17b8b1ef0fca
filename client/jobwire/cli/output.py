"""What commands print: JSON lines for scripts, tables on a terminal, tabs in a pipe."""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from itertools import chain, islice
from typing import Any
from zoneinfo import ZoneInfo

from google.protobuf.any_pb2 import Any as AnyMessage
from rich.table import Table
from rich.text import Text

from jobwire.cli.terminal import can_show, console, in_json, in_line, put, shown
from jobwire.models import Failure, FailureOrigin, Job, JobState, RetryPolicy
from jobwire.payloads import Payload, UnknownPayload, from_payload

LIVE_STATES = (JobState.PENDING, JobState.SCHEDULED, JobState.RUNNING, JobState.CANCELLING)
DEPTH_STATES = (*LIVE_STATES, JobState.SUCCEEDED, JobState.FAILED)
"""The columns of a table of queues."""
STATE_STYLES = {
    JobState.SCHEDULED: "cyan",
    JobState.PENDING: "blue",
    JobState.RUNNING: "yellow",
    JobState.CANCELLING: "magenta",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "bold red",
    JobState.CANCELLED: "magenta",
    JobState.EXPIRED: "red",
}


def to_json(value: Any) -> Any:
    """Turn models and payloads into JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        made: dict[str, Any] = {}
        for field in fields(value):
            name = field.name.removeprefix("raw_")
            try:
                content = to_json(getattr(value, name))
            except UnknownPayload as error:
                content = {"unreadable": str(error)}
            made[f"{name}_s" if _is_span(field) else name] = content
        return made
    match value:
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case timedelta():
            return value.total_seconds()
        case Enum():
            return value.value
        case float() if not math.isfinite(value):
            # JSON has no number for it; the same words as in the JSON form of protobuf.
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case bytes():
            return {"base64": base64.b64encode(value).decode()}
        case AnyMessage():
            encoded = base64.b64encode(value.value).decode()
            return {"type_url": value.type_url, "base64": encoded}
        case Mapping():
            return {str(to_json(key)): to_json(entry) for key, entry in value.items()}
        case list() | tuple():
            return [to_json(entry) for entry in value]
    return value


def _is_span(field: Field[Any]) -> bool:
    """Tell whether a field holds a span of time; in JSON its unit is in the name."""
    return isinstance(field.type, str) and ("timedelta" in field.type or "Seconds" in field.type)


def print_json(value: Any) -> None:
    """Print one line."""
    put(json_text(value, compact=True))


def json_text(value: Any, *, compact: bool = False) -> str:
    """Return JSON in characters that standard output has, without control characters."""
    separators = (",", ":") if compact else None
    made = to_json(value)
    text = in_json(json.dumps(made, ensure_ascii=False, allow_nan=False, separators=separators))
    if can_show(text):
        return text
    return in_json(json.dumps(made, allow_nan=False, separators=separators))


def print_rows(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    empty: str,
    spare: Sequence[str] = (),
) -> None:
    """Print a table on a terminal, and lines of tab-separated fields into a pipe.

    Args:
        columns: Their headings.
        rows: A cell is a text, a number, a `JobState` or None.
        empty: What to print on a terminal if there are no rows.
        spare: Columns that a terminal shows only where they fit and say anything; those that go
            first come first.
    """
    if not sys.stdout.isatty():
        left = iter(rows)
        # Before the headings, because the call behind it may fail.
        first = list(islice(left, 1))
        put("\t".join(columns))
        for row in chain(first, left):
            put("\t".join("" if cell is None else in_line(str(cell)) for cell in row))
        return
    screen = console()
    cells = [[_cell(cell) for cell in row] for row in rows]
    if not cells:
        put(empty)
        return
    left_out = _left_out(columns, cells, spare, screen.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    kept = [at for at, column in enumerate(columns) if column not in left_out]
    for at in kept:
        # The first column is the id, which is there to be copied.
        table.add_column(columns[at], no_wrap=at == 0, overflow="fold")
    for line in cells:
        table.add_row(*(line[at] for at in kept))
    screen.print(table)


def _left_out(
    columns: Sequence[str], cells: Sequence[Sequence[Text]], spare: Sequence[str], width: int
) -> set[str]:
    """Return the spare columns that are empty, or that a screen has no room for."""
    widths = {
        column: max(len(column), *(line[at].cell_len for line in cells))
        for at, column in enumerate(columns)
    }
    empty = {
        column
        for at, column in enumerate(columns)
        if column in spare and not any(line[at].plain for line in cells)
    }
    left_out = set(empty)
    for column in spare:
        shown = [widths[name] for name in columns if name not in left_out]
        if sum(shown) + 2 * (len(shown) - 1) <= width:
            break
        left_out.add(column)
    return left_out


def _cell(value: Any) -> Text:
    if isinstance(value, JobState):
        return Text(value.value, style=STATE_STYLES.get(value, ""))
    return Text("" if value is None else in_line(str(value)))


def print_facts(facts: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one pair a line; leave out what is None or empty."""
    given = [(name, value) for name, value in facts if value is not None and value != ""]
    width = max((len(name) for name, _ in given), default=0)
    screen = console()
    for name, value in given:
        style = STATE_STYLES.get(value, "") if isinstance(value, JobState) else ""
        # What is more than one line, a stack trace for instance, stays in its column.
        lines = f"\n{'':<{width}}  ".join(shown(str(value)).rstrip("\n").split("\n"))
        screen.print(Text.assemble((f"{name:<{width}}  ", "dim"), (lines, style)), soft_wrap=True)


def short_payload(value: Any, limit: int = 400) -> str:
    """Show a payload in one line, cut after `limit` characters."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = json_text(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def failure_type(failure: Failure) -> str:
    """Show the type of a failure, and that the broker found it where that is so."""
    return f"{failure.type} (broker)" if failure.origin is FailureOrigin.BROKER else failure.type


def payload_text(raw: Payload) -> str | None:
    """Show a payload in one line; None if there is none."""
    try:
        value = from_payload(raw)
    except UnknownPayload as error:
        return str(error)
    return None if raw.WhichOneof("kind") is None else short_payload(value)


def one_line(text: str, most: int) -> str:
    """Show the first line of a text, cut after `most` characters."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= most else f"{line[: most - 1]}…"


def when(moment: datetime | None, zone: ZoneInfo | None = None) -> str | None:
    """Show a moment with its distance from now, in local time or in the zone named."""
    if moment is None:
        return None
    distance = (datetime.now(UTC) - moment).total_seconds()
    words = f"{span(abs(distance))} ago" if distance >= 0 else f"in {span(-distance)}"
    if zone is None:
        return f"{moment.astimezone():%Y-%m-%d %H:%M:%S} ({words})"
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M:%S %Z} ({words})"


def span(seconds: float | timedelta | None) -> str | None:
    """Show a span with its two largest units."""
    if seconds is None:
        return None
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    left, parts = int(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def retry_text(policy: RetryPolicy) -> str:
    """Show a retry policy in a few words; empty if it says nothing."""
    parts = (
        None if policy.max_attempts is None else plural(policy.max_attempts, "attempt"),
        None if policy.initial_backoff is None else f"backoff from {span(policy.initial_backoff)}",
        None if policy.max_backoff is None else f"up to {span(policy.max_backoff)}",
        None if policy.multiplier is None else f"times {policy.multiplier:g}",
        None if policy.jitter is None else f"jitter {policy.jitter:g}",
    )
    return ", ".join(part for part in parts if part)


def plural(count: int, what: str) -> str:
    """Show a count with its noun."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def size(count: int) -> str:
    """Show a number of bytes."""
    if count < 1 << 10:
        return plural(count, "byte")
    for unit, bits in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << bits:
            return f"{count / (1 << bits):.4g} {unit}"
    raise AssertionError(count)


def progress_text(job: Job) -> str:
    """Show the progress of a job in a few words."""
    if job.progress is None:
        return ""
    fraction = "" if job.progress.fraction is None else f"{job.progress.fraction:.0%}"
    return " ".join(part for part in (fraction, job.progress.message) if part)


def pairs(mapping: Mapping[str, str]) -> str:
    """Show labels as `key=value` words."""
    return " ".join(f"{key}={value}" for key, value in sorted(mapping.items()))

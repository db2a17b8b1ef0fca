"""Bounds of the log: nothing in it is long, and no event fills it, whoever brings it about."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, WrappedLogger

LINES_PER_S = 50
"""Of one event; those beyond are counted, and the next line tells how many."""
MAX_EVENTS = 1_000
"""Events that are counted each by itself."""
MAX_TEXT = 2_000
"""Characters of one value."""
MAX_MESSAGE = 500
"""Characters of one line of a traceback: an exception may quote what a caller sent."""
MAX_FRAMES = 20
MAX_CAUSES = 5
COUNTED_ELSEWHERE = frozenset({"call", "slow call"})
"""Events whose lines are bounded, or wanted all, where they are written."""


class Rate:
    """Bounds the lines of each event."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._second = 0
        self._lines: dict[str, int] = {}
        self._left_out: dict[str, int] = {}

    def admits(self, event: str) -> bool:
        """Return whether a line of an event may be written now."""
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._lines.clear()
        # Events beyond the bound share one count: a text may be made up by whoever calls.
        key = event if event in self._lines or len(self._lines) < MAX_EVENTS else ""
        count = self._lines[key] = self._lines.get(key, 0) + 1
        if count <= LINES_PER_S:
            return True
        if key in self._left_out or len(self._left_out) < MAX_EVENTS:
            self._left_out[key] = self._left_out.get(key, 0) + 1
        return False

    def left_out(self, event: str) -> int:
        """Return how many lines of an event were left out since it was asked last."""
        return self._left_out.pop(event, 0) if self._left_out else 0

    def processor(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Drop a line beyond the bound; a processor of structlog."""
        name = str(event.get("event", ""))[:MAX_TEXT]
        if name in COUNTED_ELSEWHERE:
            return event
        if not self.admits(name):
            raise structlog.DropEvent
        if count := self.left_out(name):
            event["lines_left_out"] = count
        return event

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop a line of a library beyond the bound; a filter of logging."""
        name = f"{record.name}: {str(record.msg)[:MAX_MESSAGE]}"
        if not self.admits(name):
            return False
        if count := self.left_out(name):
            record.lines_left_out = count
        return True


def shorten(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Cut long values; a processor of structlog."""
    for name, value in event.items():
        if isinstance(value, str | bytes):
            if len(value) > MAX_TEXT:
                event[name] = _cut(value if isinstance(value, str) else repr(value[:MAX_TEXT]))
        elif isinstance(value, list | tuple | dict | set):
            text = repr(value) if len(value) <= MAX_TEXT else f"{len(value)} entries"
            if len(text) > MAX_TEXT:
                event[name] = _cut(text)
    return event


def short_tracebacks(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Cut what exceptions say of themselves; behind the rendering of tracebacks as values."""
    stacks = event.get("exception")
    if isinstance(stacks, list):
        event["exception"] = [_short_stack(stack) for stack in stacks[:MAX_CAUSES]]
    return event


def write_traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    """Write a traceback for people, without variables and without long lines."""
    told = traceback.TracebackException(*exc_info, limit=-MAX_FRAMES, max_group_width=MAX_CAUSES)
    lines = [_cut(line.rstrip("\n"), MAX_MESSAGE) for line in told.format()]
    most = 4 * MAX_FRAMES
    if len(lines) > most:
        lines[most // 2 : -most // 2] = ["  …"]
    stream.write("\n" + "\n".join(lines))


def _short_stack(stack: dict[str, Any]) -> dict[str, Any]:
    short = dict(stack)
    short["exc_value"] = _cut(str(stack.get("exc_value", "")), MAX_MESSAGE)
    notes = [str(note) for note in stack.get("exc_notes") or ()]
    if notes:
        short["exc_notes"] = [_cut(note, MAX_MESSAGE) for note in notes[:MAX_CAUSES]]
    within = stack.get("exceptions") or ()
    if within:
        short["exceptions"] = [
            [_short_stack(one) for one in chain[:MAX_CAUSES]] for chain in within[:MAX_CAUSES]
        ]
    return short


def _cut(text: str, most: int = MAX_TEXT) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"

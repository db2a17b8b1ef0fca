"""Cron expressions in time zones: when they are due, as Unix time.

The fields are read, and walls' clocks are searched, by cronsim, which does as Debian's cron does.
What happens where a zone's offset changes is decided here, because cronsim steps by whole hours
and so misses moments of zones that change by half an hour.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
MAX_LENGTH = 256

_FIELDS = (
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31, or L for the last"),
    ("month", "1 to 12 or JAN to DEC"),
    ("day of the week", "0 to 7 or SUN to SAT, with #1 to #5 for the nth of the month or L"),
)
_EPOCH = datetime(1970, 1, 1)
_SOME_MOMENT = datetime(2000, 1, 1)
_STEP_S = 7 * 86_400
"""No zone changes its offset twice within a week."""


class CronError(ValueError):
    """An expression or a zone that can't be used; the text says what would be right."""


@lru_cache(maxsize=1)
def zone_names() -> frozenset[str]:
    """Return the names of all zones."""
    return frozenset((files("tzdata") / "zones").read_text("utf-8").split())


@lru_cache(maxsize=1024)
def zone_of(name: str) -> ZoneInfo:
    """Return a time zone.

    It comes out of the tzdata package and not from the machine, so that servers on different
    machines agree.

    Raises:
        CronError: There is none of this name.
    """
    known = zone_names()
    if name not in known:
        by_folded = {zone.casefold(): zone for zone in known}
        near = get_close_matches(name.casefold()[:64], by_folded, 1, 0.7)
        hint = f"; did you mean {by_folded[near[0]]}?" if near else ""
        raise CronError(
            f"must be the IANA name of a time zone, such as Europe/Berlin, not {name[:64]!r}{hint}"
        )
    path = files("tzdata") / "zoneinfo"
    for part in name.split("/"):
        path /= part
    with path.open("rb") as data:
        return ZoneInfo.from_file(data, key=name)


class Cron:
    """An expression in a zone. Made by `cron_of`."""

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        self._expression = expression
        self._zone = zone
        minute, hour, *_ = expression.split()
        self._fixed = not minute.startswith("*") and not hour.startswith("*")
        self._fixed_hour = not hour.startswith("*")

    def after(self, ms: int) -> int | None:
        """Return the first due moment after one, both in Unix milliseconds; None if there is none
        within 50 years.

        Between two changes of the zone's offset the wall's clock and Unix time run side by side, so
        each such span is searched by itself. Hours that a change skips are made up for at the
        change, if the expression names its hours. Hours that it repeats count once for
        expressions that name minutes and hours, and each time for others.
        """
        last = ms // 1000
        begin = last
        offset = self._offset_s(last)
        while True:
            wall = self._wall_after(last + offset)
            if wall is None:
                return None
            found = wall - offset
            change = self._change_within(begin, found)
            if change is None:
                if not (self._fixed and self._repeated(found)):
                    return found * 1000
                last = found
                continue
            former, offset = offset, self._offset_s(change)
            if self._fixed_hour and change + former <= wall < change + offset:
                return change * 1000
            begin, last = change, change - 1

    def _wall_after(self, wall_s: int) -> int | None:
        """Return the next match of the fields on a clock that never changes."""
        wall = _EPOCH + timedelta(seconds=wall_s)
        found = next(CronSim(self._expression, wall), None)
        return None if found is None else (found - _EPOCH) // timedelta(seconds=1)

    def _offset_s(self, at_s: int) -> int:
        offset = self._local(at_s).utcoffset()
        assert offset is not None
        return offset // timedelta(seconds=1)

    def _repeated(self, at_s: int) -> bool:
        """True if the wall's clock has shown this time before."""
        return self._local(at_s).fold == 1

    def _local(self, at_s: int) -> datetime:
        return (_EPOCH + timedelta(seconds=at_s)).replace(tzinfo=UTC).astimezone(self._zone)

    def _change_within(self, begin_s: int, end_s: int) -> int | None:
        """Return the first moment after one, up to another, with a new offset; None: it stays."""
        if self._zone.key == "UTC":
            return None
        offset = self._offset_s(begin_s)
        while begin_s < end_s:
            step = min(begin_s + _STEP_S, end_s)
            if self._offset_s(step) != offset:
                while step - begin_s > 1:
                    middle = (begin_s + step) // 2
                    if self._offset_s(middle) == offset:
                        begin_s = middle
                    else:
                        step = middle
                return step
            begin_s = step
        return None


@lru_cache(maxsize=4096)
def cron_of(expression: str, zone_name: str = "UTC") -> Cron:
    """Read an expression.

    Args:
        expression: Five fields, or one of MACROS.
        zone_name: IANA name of the zone.

    Raises:
        CronError: Either is not right.
    """
    return Cron(_fields_of(expression), zone_of(zone_name))


def _fields_of(expression: str) -> str:
    """Return an expression as five fields that are right each by itself and together."""
    if expression.startswith("@"):
        fields = MACROS.get(expression.lower())
        if fields is None:
            raise CronError(f"must be one of {' '.join(MACROS)}, not {expression[:64]!r}")
        return fields
    fields = " ".join(expression.upper().split())
    parts = fields.split()
    if len(parts) != len(_FIELDS) or len(fields) > MAX_LENGTH:
        raise CronError(
            "must be five fields (minute, hour, day of the month, month, day of the week) of at"
            f" most {MAX_LENGTH} characters together, not {expression[:64]!r}"
        )
    for at, ((name, range_), part) in enumerate(zip(_FIELDS, parts, strict=True)):
        alone = ["*"] * len(parts)
        alone[at] = part
        if not _readable(alone):
            raise CronError(
                f"has a wrong {name}: {part[:64]!r}; it may hold {range_}, and * , - / between them"
            )
    if not _readable(parts):
        raise CronError(f"is never due: no month has the days of {fields[:64]!r}")
    return fields


def _readable(parts: list[str]) -> bool:
    try:
        CronSim(" ".join(parts), _SOME_MOMENT)
    except (CronSimError, ValueError):
        return False
    return True

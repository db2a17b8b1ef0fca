"""Cron expressions in time zones: when they are due, as Unix time.

The fields are read by cronsim, which does as Debian's cron does and also says which days they name.
The search is done here: cronsim goes day by day, which takes seconds for what is due every 28
years, and steps by whole hours, so that it misses moments of zones that change by half an hour.
"""

from __future__ import annotations

from bisect import bisect_right
from calendar import monthrange
from datetime import date, datetime, timedelta
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
_YEARS = 50
"""What is not due within them counts as never due."""
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
        self._zone = zone
        minute, hour, *_ = expression.split()
        self._fixed = not minute.startswith("*") and not hour.startswith("*")
        self._fixed_hour = not hour.startswith("*")
        fields = CronSim(expression, _SOME_MOMENT)
        self._months = fields.months
        self._is_day = fields.match_day
        self._minutes = [
            60 * hour + minute for hour in sorted(fields.hours) for minute in sorted(fields.minutes)
        ]
        """Of a day."""
        # What has to be one of these and on a certain weekday needs no look at the others.
        named = fields.day_and and min(fields.days) > 0
        self._days = sorted(fields.days) if named else range(1, 32)

    def after(self, ms: int) -> int | None:
        """Return the first due moment after one, both in Unix milliseconds; None if there is none
        within 50 years.

        Between two changes of the zone's offset the wall's clock and Unix time run side by side, so
        each such span is searched by itself. Hours that a change skips are made up for at the
        change, if the expression names its hours. Hours that it repeats count once for
        expressions that name minutes and hours, and each time for others.
        """
        return _after(self, ms)

    def search(self, ms: int) -> int | None:
        """Return what `after` returns, which remembers it."""
        last = ms // 1000
        begin = last
        offset = self._offset_s(last)
        searched, wall = 0, None
        while True:
            # The match that was found still is the next one, unless the clock went past it or back.
            if wall is None or not searched <= last + offset < wall:
                searched = last + offset
                wall = self._wall_after(searched)
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
        at = bisect_right(self._minutes, 60 * wall.hour + wall.minute)
        day = wall.date()
        if not (at < len(self._minutes) and day.month in self._months and self._is_day(day)):
            found = self._day_after(day)
            if found is None:
                return None
            day, at = found, 0
        return (day - _EPOCH.date()).days * 86_400 + self._minutes[at] * 60

    def _day_after(self, day: date) -> date | None:
        """Return the first day after one that the fields name."""
        year, month, behind = day.year, day.month, day.day
        for _ in range(12 * _YEARS + 1):
            if month in self._months:
                longest = monthrange(year, month)[1]
                for number in self._days:
                    if behind < number <= longest:
                        found = date(year, month, number)
                        if self._is_day(found):
                            return found
            year, month, behind = (year, month + 1, 0) if month < 12 else (year + 1, 1, 0)
        return None

    def _offset_s(self, at_s: int) -> int:
        return _offset_s(self._zone, at_s)

    def _repeated(self, at_s: int) -> bool:
        """True if the wall's clock has shown this time before."""
        return _local(self._zone, at_s).fold == 1

    def _change_within(self, begin_s: int, end_s: int) -> int | None:
        """Return the first moment after one, up to another, with a new offset; None: it stays."""
        if self._zone.key == "UTC":
            return None
        for year in range(_year_of(begin_s), _year_of(end_s) + 1):
            for change in _changes(self._zone, year):
                if begin_s < change <= end_s:
                    return change
        return None


@lru_cache(maxsize=16_384)
def _after(cron: Cron, ms: int) -> int | None:
    # Lists of schedules ask for the same moments again and again.
    return cron.search(ms)


def _local(zone: ZoneInfo, at_s: int) -> datetime:
    return datetime.fromtimestamp(at_s, zone)


def _offset_s(zone: ZoneInfo, at_s: int) -> int:
    offset = _local(zone, at_s).utcoffset()
    assert offset is not None
    return offset // timedelta(seconds=1)


def _year_of(at_s: int) -> int:
    return (_EPOCH + timedelta(seconds=at_s)).year


@lru_cache(maxsize=8_192)
def _changes(zone: ZoneInfo, year: int) -> tuple[int, ...]:
    """Return when the offset of a zone changes in a year of UTC."""
    begin_s = (datetime(year, 1, 1) - _EPOCH) // timedelta(seconds=1)
    end_s = (datetime(year + 1, 1, 1) - _EPOCH) // timedelta(seconds=1)
    # The second before belongs to it: a change may come with the year.
    at_s, offset, found = begin_s - 1, _offset_s(zone, begin_s - 1), []
    while at_s < end_s - 1:
        step = min(at_s + _STEP_S, end_s - 1)
        if (following := _offset_s(zone, step)) != offset:
            low, high = at_s, step
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset_s(zone, middle) == offset else (low, middle)
            found.append(high)
            offset = following
        at_s = step
    return tuple(found)


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

"""Cron expressions: fields, zones, and the days on which clocks are changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice, pairwise
from time import thread_time
from typing import NamedTuple

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from jobwire_server.domain.decisions.cron import MACROS, CronError, cron_of, zone_names, zone_of

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Asia/Kathmandu",
    "Pacific/Chatham",
]


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def _due(expression: str, zone: str, after: str, most: int) -> list[str]:
    """The moments after one, as the clock on the wall shows them."""
    cron, at, found = cron_of(expression, zone), _ms(after), []
    for _ in range(most):
        following = cron.after(at)
        assert following is not None
        at = following
        found.append(datetime.fromtimestamp(at / 1000, zone_of(zone)).isoformat()[5:])
    return found


@pytest.mark.parametrize(
    ("expression", "due"),
    [
        ("30 6 * * MON-FRI", ["2026-11-23T06:30", "2026-11-24T06:30"]),
        ("*/20 * * * *", ["2026-11-21T00:20", "2026-11-21T00:40"]),
        ("0 0 L * *", ["2026-11-30T00:00", "2026-12-31T00:00"]),
        ("0 9 * * MON#1", ["2026-12-07T09:00", "2027-01-04T09:00"]),
        ("0 9 * * 5L", ["2026-11-27T09:00", "2026-12-25T09:00"]),
        ("0 0 29 feb *", ["2028-02-29T00:00", "2032-02-29T00:00"]),
        ("5,10-12 0 1 1 *", ["2027-01-01T00:05", "2027-01-01T00:10"]),
        # Debian's rule: either day, if both are named.
        ("0 0 24 * 7", ["2026-11-22T00:00", "2026-11-24T00:00"]),
        ("@hourly", ["2026-11-21T01:00", "2026-11-21T02:00"]),
        ("@daily", ["2026-11-22T00:00", "2026-11-23T00:00"]),
        ("@weekly", ["2026-11-22T00:00", "2026-11-29T00:00"]),
        ("@monthly", ["2026-12-01T00:00", "2027-01-01T00:00"]),
        ("@yearly", ["2027-01-01T00:00", "2028-01-01T00:00"]),
    ],
)
def test_an_expression_is_due_when_its_fields_say_so(expression: str, due: list[str]) -> None:
    cron = cron_of(expression)
    first = cron.after(_ms("2026-11-21T00:00Z"))
    assert first is not None
    found = [datetime.fromtimestamp(ms / 1000, UTC) for ms in (first, cron.after(first) or 0)]
    assert [at.isoformat()[:16] for at in found] == due


@pytest.mark.parametrize(
    ("zone", "expression", "after", "due"),
    [
        # A fixed hour that is skipped is made up for at the change.
        ("Europe/Berlin", "30 2 * * *", "2027-03-27T12:00Z", ["03-28T03:00:00+02:00"]),
        ("America/New_York", "15 2 * * *", "2027-03-13T12:00Z", ["03-14T03:00:00-04:00"]),
        ("Australia/Lord_Howe", "10 2 * * *", "2026-10-03T12:00Z", ["10-04T02:30:00+11:00"]),
        # Once, however many of its moments are skipped.
        (
            "Europe/Berlin",
            "*/15 2 * * *",
            "2027-03-27T12:00Z",
            ["03-28T03:00:00+02:00", "03-29T02:00:00+02:00"],
        ),
        (
            "Europe/Berlin",
            "30 2,3 * * *",
            "2027-03-27T12:00Z",
            ["03-28T03:00:00+02:00", "03-28T03:30:00+02:00"],
        ),
        # Half an hour is skipped, and the other half is there.
        (
            "Australia/Lord_Howe",
            "15,45 2 * * *",
            "2026-10-03T12:00Z",
            ["10-04T02:30:00+11:00", "10-04T02:45:00+11:00"],
        ),
        (
            "Australia/Lord_Howe",
            "*/15 3 * * *",
            "2026-10-03T12:00Z",
            ["10-04T03:00:00+11:00", "10-04T03:15:00+11:00"],
        ),
        # An hourly one goes on at its distance.
        (
            "Europe/Berlin",
            "30 * * * *",
            "2027-03-28T00:00Z",
            ["03-28T01:30:00+01:00", "03-28T03:30:00+02:00"],
        ),
        # A fixed hour that comes twice counts once.
        (
            "Europe/Berlin",
            "30 2 * * *",
            "2027-10-30T12:00Z",
            ["10-31T02:30:00+02:00", "11-01T02:30:00+01:00"],
        ),
        (
            "America/New_York",
            "30 1 * * *",
            "2027-11-06T12:00Z",
            ["11-07T01:30:00-04:00", "11-08T01:30:00-05:00"],
        ),
        (
            "Australia/Lord_Howe",
            "45 1 * * *",
            "2027-04-03T12:00Z",
            ["04-04T01:45:00+11:00", "04-05T01:45:00+10:30"],
        ),
        # Hourly and minutely ones each time.
        (
            "Europe/Berlin",
            "30 * * * *",
            "2027-10-30T23:45Z",
            ["10-31T02:30:00+02:00", "10-31T02:30:00+01:00", "10-31T03:30:00+01:00"],
        ),
        (
            "Australia/Lord_Howe",
            "*/15 * * * *",
            "2027-04-03T14:29Z",
            [
                "04-04T01:30:00+11:00",
                "04-04T01:45:00+11:00",
                "04-04T01:30:00+10:30",
                "04-04T01:45:00+10:30",
                "04-04T02:00:00+10:30",
            ],
        ),
        # Asked in the second round of an hour.
        ("Europe/Berlin", "45 2 * * *", "2027-10-31T01:10Z", ["11-01T02:45:00+01:00"]),
    ],
)
def test_the_days_on_which_clocks_are_changed(
    zone: str, expression: str, after: str, due: list[str]
) -> None:
    assert _due(expression, zone, after, len(due)) == due


# A field of one value, a list, a range, or steps; days that every month has.
def _field(least: int, most: int) -> st.SearchStrategy[str]:
    value = st.integers(least, most)
    return st.one_of(
        st.just("*"),
        value.map(str),
        st.integers(1, max(1, most // 2)).map(lambda step: f"*/{step}"),
        st.lists(value, min_size=1, max_size=4).map(lambda found: ",".join(map(str, found))),
        st.tuples(value, value).map(lambda pair: f"{min(pair)}-{max(pair)}"),
    )


EXPRESSIONS = st.tuples(_field(0, 59), _field(0, 23), _field(1, 28), _field(1, 12), st.just("*"))
YEAR_2027 = _ms("2027-01-01T00:00Z")
IN_2027 = st.integers(YEAR_2027, YEAR_2027 + 365 * 86_400_000)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ZONES), EXPRESSIONS, IN_2027)
def test_the_next_moment_lies_ahead_and_none_lies_before_it(
    zone: str, fields: tuple[str, ...], at: int
) -> None:
    cron = cron_of(" ".join(fields), zone)
    found = cron.after(at)
    assert found is not None
    assert found > at
    # Whoever asks on the way there gets the same moment: nothing is lost and nothing is double.
    for between in (at + 1, (at + found) // 2, found - 1):
        if at <= between < found:
            assert cron.after(between) == found


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ZONES), EXPRESSIONS)
def test_moments_grow_strictly(zone: str, fields: tuple[str, ...]) -> None:
    cron, at = cron_of(" ".join(fields), zone), YEAR_2027
    found = []
    for _ in range(100):
        at = cron.after(at) or 0
        found.append(at)
    assert all(earlier < later for earlier, later in pairwise(found))


class Wall(NamedTuple):
    """A minute on a clock on the wall."""

    at: datetime
    again: bool
    """It shows what it showed before."""
    gone: tuple[tuple[int, int], ...]
    """Hours and minutes that it left out just before."""


@cache
def _walls(zone: str, begin: datetime, days: int) -> list[Wall]:
    """Every minute of some days."""
    steps = (begin + timedelta(minutes=at) for at in range(days * 1440))
    local = [moment.astimezone(zone_of(zone)) for moment in steps]
    found = []
    for before, at in pairwise([local[0], *local]):
        skipped = at.replace(tzinfo=None) - before.replace(tzinfo=None) - timedelta(minutes=1)
        gone = [at - timedelta(minutes=back) for back in range(1, 1 + skipped.seconds // 60)]
        left_out = tuple((wall.hour, wall.minute) for wall in gone) if skipped.days >= 0 else ()
        found.append(Wall(at, at.fold == 1, left_out))
    return found


def _changes(zone: str) -> list[datetime]:
    """The days of 2027 on which the clock is put forward or back."""
    days = [datetime(2027, 1, 1, tzinfo=UTC) + timedelta(days=at) for at in range(365)]
    local = [day.astimezone(zone_of(zone)) for day in days]
    return [
        day
        for day, at, then in zip(days, local, local[1:], strict=False)
        if at.utcoffset() != then.utcoffset()
    ]


@pytest.mark.parametrize(
    ("zone", "change"), [(zone, at) for zone in ZONES[1:4] for at in _changes(zone)], ids=str
)
@pytest.mark.parametrize("expression", ["*/15 * * * *", "*/7 1-3 * * *", "20,40 0-23 * * *"])
def test_no_moment_around_a_change_of_the_clock_is_lost_or_added(
    zone: str, change: datetime, expression: str
) -> None:
    begin, days = change - timedelta(days=2), 5
    minute, hour, *_ = expression.split()
    minutes = {"*/15": range(0, 60, 15), "*/7": range(0, 60, 7), "20,40": (20, 40)}[minute]
    hours = {"*": range(24), "1-3": (1, 2, 3), "0-23": range(24)}[hour]
    fixed = "*" not in minute + hour
    expected = {
        wall.at.timestamp()
        for wall in _walls(zone, begin, days)
        if (wall.at.hour in hours and wall.at.minute in minutes and not (fixed and wall.again))
        or (hour != "*" and any(h in hours and m in minutes for h, m in wall.gone))
    }
    cron, at, found = cron_of(expression, zone), int(begin.timestamp() * 1000) - 1, set()
    while True:
        at = cron.after(at) or 0
        if at >= (begin + timedelta(days=days)).timestamp() * 1000:
            break
        found.add(at / 1000)
    assert found == expected


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("0 * * * * *", "five fields"),
        ("* * * * " + "1," * 200 + "1", "five fields"),
        ("61 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* * 0 * *", "day of the month"),
        ("* * * FOO *", "month: 'FOO'"),
        ("* * * * FRI#6", "day of the week"),
        ("*/0 * * * *", "minute"),
        ("5-1 * * * *", "minute"),
        ("0 0 30 2 *", "never due"),
        ("0 0 31 4,6,9,11 *", "never due"),
        ("@often", "@hourly"),
    ],
)
def test_what_is_wrong_with_an_expression_is_named(expression: str, words: str) -> None:
    with pytest.raises(CronError, match=words):
        cron_of(expression)


@given(st.text(max_size=40) | st.text("0123456789*/,-#LW ", max_size=30))
def test_any_text_is_read_or_refused(expression: str) -> None:
    try:
        cron = cron_of(expression)
    except CronError:
        return
    found = cron.after(YEAR_2027)
    assert found is None or found > YEAR_2027


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("europe/berlin", "did you mean Europe/Berlin"),
        ("Europe/Berlim", "did you mean Europe/Berlin"),
        ("../../etc/passwd", "IANA name"),
        ("Europe", "IANA name"),
        ("Mars/Olympus", "IANA name"),
        ("x" * 10_000, "IANA name"),
    ],
)
def test_an_unknown_zone_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(CronError, match=hint):
        cron_of("* * * * *", name)


def test_every_zone_of_the_list_can_be_read() -> None:
    assert len(zone_names()) > 400
    assert all(zone_of(name).key == name for name in islice(sorted(zone_names()), 0, None, 7))


def test_there_is_a_macro_for_each_that_the_contract_names() -> None:
    assert set(MACROS) == {"@hourly", "@daily", "@weekly", "@monthly", "@yearly"}


DAYS = st.sampled_from(["*", "*/7", "1", "29", "30,31", "L", "LW", "1-7", "28-31", "13"])
MONTHS = st.sampled_from(["*", "2", "4,6", "2-3", "*/5", "DEC"])
WEEKDAYS = st.sampled_from(["*", "*/7", "1", "7", "FRI", "MON#5", "5L", "1-5", "0,3#2", "*/6"])


@settings(max_examples=60, deadline=None)
@given(DAYS, MONTHS, WEEKDAYS, IN_2027)
def test_days_are_those_that_cronsim_finds(day: str, month: str, weekday: str, at: int) -> None:
    expression = f"30 4,16 {day} {month} {weekday}"
    try:
        cron = cron_of(expression)
    except CronError:
        return
    seconds = at // 1000 * 1000
    expected = next(CronSim(expression, datetime.fromtimestamp(seconds / 1000, UTC)), None)
    found = cron.after(seconds)
    assert found == (expected and int(expected.timestamp()) * 1000)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Africa/Casablanca", "UTC"])
@pytest.mark.parametrize(
    "expression", ["0 0 29 2 */7", "0 0 29 2 0", "0 0 * 2 MON#5", "0 0 29 2 1#5", "0 0 1 1 1#5"]
)
def test_what_is_due_every_28_years_is_found_at_once(zone: str, expression: str) -> None:
    cron = cron_of(expression, zone)
    for year in range(2026, 2031):
        began = thread_time()
        cron.after(_ms(f"{year}-03-01T00:00Z"))
        assert thread_time() - began < 0.05

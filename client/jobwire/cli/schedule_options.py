"""The options that say what a schedule is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar, get_args

import click

from jobwire.cli.parameters import duration, time, words
from jobwire.cli.submission import given_options, job_options
from jobwire.schedules import Missed, Overlap

F = TypeVar("F", bound=Callable[..., Any])

_CADENCE = (
    click.option(
        "--cron", metavar="EXPRESSION", help="When it is due, such as '30 6 * * MON-FRI' or @daily."
    ),
    click.option(
        "--time-zone", "-z", help="The time zone of --cron, such as Europe/Berlin. Default: UTC."
    ),
    click.option(
        "--every", type=duration, help="How often it is due, such as 5m; instead of --cron."
    ),
    click.option(
        "--anchor", type=time, help="The moment from which --every counts. Default: its creation."
    ),
    click.option("--start-at", type=time, help="It is not due before this."),
    click.option("--end-at", type=time, help="It is not due after this."),
    click.option(
        "--missed",
        type=words(get_args(Missed)),
        help="What to do about moments when no server was up. Default: run-latest.",
    ),
    click.option(
        "--catch-up-window", type=duration, help="How far back --missed run-all goes. Default: 1d."
    ),
    click.option(
        "--overlap",
        type=words(get_args(Overlap)),
        help="What to do while the previous job is unfinished. Default: skip.",
    ),
    click.option("--spread", type=duration, help="Delay each job at random, by up to this long."),
    click.option(
        "--deadline",
        type=duration,
        help="Fail a job unless it is finished so long after it was due.",
    ),
    click.option("--description", help="A text for people."),
    click.option("--bytes", "as_bytes", is_flag=True, help="Send the payload as bytes, not JSON."),
)


def schedule_options(function: F) -> F:
    """Add the options that say what a schedule is."""
    function = job_options(function)
    for decorate in reversed(_CADENCE):
        function = decorate(function)
    return function


def given_schedule_options(
    *,
    cron: str | None,
    time_zone: str | None,
    every: float | None,
    anchor: datetime | None,
    start_at: datetime | None,
    end_at: datetime | None,
    missed: str | None,
    catch_up_window: float | None,
    overlap: str | None,
    spread: float | None,
    deadline: float | None,
    description: str | None,
    **options: Any,
) -> dict[str, Any]:
    """Turn the options into arguments of the client; options that were not given are left out."""
    named: dict[str, Any] = {
        "cron": cron,
        "time_zone": time_zone,
        "every": every,
        "anchor": anchor,
        "start_at": start_at,
        "end_at": end_at,
        "missed": missed and missed.replace("-", "_"),
        "catch_up_window": catch_up_window,
        "overlap": overlap and overlap.replace("-", "_"),
        "jitter": spread,
        "deadline": None if deadline is None else timedelta(seconds=deadline),
        "description": description,
    }
    named.update(given_options(**options))
    return {name: value for name, value in named.items() if value is not None}

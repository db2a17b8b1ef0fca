"""Commands for recurring jobs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from jobwire.cli.group import Settings, cli, common, pass_settings
from jobwire.cli.output import (
    pairs,
    print_facts,
    print_json,
    print_rows,
    retry_text,
    short_payload,
    span,
    when,
)
from jobwire.cli.parameters import duration, read_payload, time
from jobwire.cli.submission import given_options, job_options
from jobwire.cli.terminal import put
from jobwire.schedules import Missed, Overlap, Schedule

F = TypeVar("F", bound=Callable[..., Any])

_QUEUE = click.option("--queue", "-q", default="default", show_default=True)
_REASON = click.option("--reason", "-m", default="", help="For people; kept with the schedule.")


def _words(values: tuple[str, ...]) -> click.Choice[str]:
    return click.Choice([value.replace("_", "-") for value in values])


_CADENCE = (
    click.option("--cron", metavar="EXPRESSION", help="Such as '30 6 * * MON-FRI', or @daily."),
    click.option("--time-zone", "-z", help="For --cron, such as Europe/Berlin. Default: UTC."),
    click.option("--every", type=duration, help="In place of --cron, such as 5m."),
    click.option("--anchor", type=time, help="For --every: a moment to count from."),
    click.option("--start-at", type=time, help="Not due before."),
    click.option("--end-at", type=time, help="Not due after."),
    click.option(
        "--missed",
        type=_words(get_args(Missed)),
        help="Moments while no server was up. Default: run-latest.",
    ),
    click.option("--catch-up-window", type=duration, help="For --missed run-all. Default: 1d."),
    click.option(
        "--overlap",
        type=_words(get_args(Overlap)),
        help="While the job before is not finished. Default: skip.",
    ),
    click.option("--spread", type=duration, help="Up to so long behind each moment."),
    click.option("--description", help="For people."),
    click.option("--bytes", "as_bytes", is_flag=True, help="Send the payload as bytes, not JSON."),
)


def schedule_options(function: F) -> F:
    """Adds the options that say what a schedule is."""
    function = job_options(function)
    for decorate in reversed(_CADENCE):
        function = decorate(function)
    return function


def _given(
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
    description: str | None,
    **options: Any,
) -> dict[str, Any]:
    """Turns what was given into what the client takes; what was not given is left out."""
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
        "description": description,
    }
    named.update(given_options(**options))
    return {name: value for name, value in named.items() if value is not None}


@cli.group(invoke_without_command=True)
@_QUEUE
@common
@click.pass_context
def schedules(context: click.Context, queue: str) -> None:
    """List, make and change recurring jobs."""
    if context.invoked_subcommand is None:
        _list(context.ensure_object(Settings), queue)


@schedules.command("list")
@_QUEUE
@common
@pass_settings
def list_schedules(settings: Settings, queue: str) -> None:
    """List the schedules of a queue."""
    _list(settings, queue)


def _list(settings: Settings, queue: str) -> None:
    with settings.client() as client:
        found = list(client.list_schedules(queue))
    if settings.json:
        for schedule in found:
            print_json(schedule)
        return
    print_rows(
        ["SCHEDULE", "OPERATION", "DUE", "NEXT", "RUNS", "SKIPPED", "MISSED"],
        [
            [
                schedule.id,
                schedule.operation,
                cadence_text(schedule),
                next_text(schedule),
                schedule.total_runs,
                schedule.skipped_runs,
                schedule.missed_runs,
            ]
            for schedule in found
        ],
        empty=f"no schedules in {queue}",
    )


@schedules.command("get")
@click.argument("schedule_id")
@_QUEUE
@common
@pass_settings
def get_schedule(settings: Settings, schedule_id: str, queue: str) -> None:
    """Show a schedule with its next moments and its latest jobs."""
    with settings.client() as client:
        _print(client.get_schedule(schedule_id, queue=queue), settings)


@schedules.command("create")
@click.argument("schedule_id")
@click.argument("operation")
@click.argument("payload", required=False)
@_QUEUE
@schedule_options
@click.option("--paused", is_flag=True, help="It begins paused.")
@common
@pass_settings
def create_schedule(
    settings: Settings,
    /,
    schedule_id: str,
    operation: str,
    payload: str | None,
    queue: str,
    as_bytes: bool,
    paused: bool,
    **options: Any,
) -> None:
    """Make a schedule: its job is submitted at each due moment.

    PAYLOAD is JSON text, @FILE, or - for standard input.

    \b
    Examples:
      jobwire schedules create nightly report.build --cron '30 6 * * *' -z Europe/Berlin
      jobwire schedules create ping site.check '{"url": "https://example.com"}' --every 5m
    """
    given = _given(**options)
    content = read_payload(payload, as_bytes=as_bytes)
    with settings.client() as client:
        try:
            made = client.create_schedule(
                schedule_id, operation, content, queue=queue, paused=paused, **given
            )
        except ValueError as error:
            raise click.UsageError(_as_options(str(error))) from error
        _print(made, settings)


@schedules.command("update")
@click.argument("schedule_id")
@_QUEUE
@click.option("--operation", "-o", help="What its jobs run.")
@click.option("--payload", help="Their input: JSON text, @FILE, or - for standard input.")
@schedule_options
@click.option(
    "--remove",
    type=click.Choice(
        [
            *("payload", "start-at", "end-at", "spread", "description", "anchor", "unique-key"),
            *("retry", "execution-timeout", "retention", "labels", "requirements"),
        ]
    ),
    multiple=True,
    help="Take this away. May be repeated.",
)
@common
@pass_settings
def update_schedule(
    settings: Settings,
    /,
    schedule_id: str,
    queue: str,
    operation: str | None,
    payload: str | None,
    as_bytes: bool,
    remove: tuple[str, ...],
    **options: Any,
) -> None:
    """Change what a schedule says; what is not named stays."""
    changes = _given(**options)
    for name in remove:
        changes["jitter" if name == "spread" else name.replace("-", "_")] = None
    if operation is not None:
        changes["operation"] = operation
    if payload is not None:
        changes["payload"] = read_payload(payload, as_bytes=as_bytes)
    if not changes:
        raise click.UsageError("name something to change")
    with settings.client() as client:
        try:
            changed = client.update_schedule(schedule_id, queue=queue, **changes)
        except ValueError as error:
            raise click.UsageError(_as_options(str(error))) from error
        _print(changed, settings)


@schedules.command("pause")
@click.argument("schedule_id")
@_QUEUE
@_REASON
@common
@pass_settings
def pause_schedule(settings: Settings, schedule_id: str, queue: str, reason: str) -> None:
    """Stop a schedule; moments that pass meanwhile are not made up for."""
    with settings.client() as client:
        _print(client.pause_schedule(schedule_id, reason, queue=queue), settings)


@schedules.command("resume")
@click.argument("schedule_id")
@_QUEUE
@common
@pass_settings
def resume_schedule(settings: Settings, schedule_id: str, queue: str) -> None:
    """Let a paused schedule go on."""
    with settings.client() as client:
        _print(client.resume_schedule(schedule_id, queue=queue), settings)


@schedules.command("trigger")
@click.argument("schedule_id")
@_QUEUE
@click.option("--request-id", help="The same one twice within a day is one job.")
@common
@pass_settings
def trigger_schedule(
    settings: Settings, schedule_id: str, queue: str, request_id: str | None
) -> None:
    """Submit a job of a schedule now, and print its id."""
    with settings.client() as client:
        job_id = client.trigger_schedule(schedule_id, queue=queue, request_id=request_id)
    if settings.json:
        print_json({"job_id": job_id})
    else:
        put(job_id)


@schedules.command("delete")
@click.argument("schedule_ids", metavar="SCHEDULE_ID...", nargs=-1, required=True)
@_QUEUE
@common
@pass_settings
def delete_schedule(settings: Settings, schedule_ids: tuple[str, ...], queue: str) -> None:
    """Remove schedules; jobs that they submitted stay."""
    with settings.client() as client:
        for schedule_id in schedule_ids:
            client.delete_schedule(schedule_id, queue=queue)


def _print(schedule: Schedule, settings: Settings) -> None:
    if settings.json:
        print_json(schedule)
        return
    own = zone_of(schedule)
    has_payload = schedule.raw_payload.WhichOneof("kind") is not None
    why = f": {schedule.pause_reason}" if schedule.pause_reason else ""
    key = schedule.unique_key
    print_facts(
        [
            ("schedule", schedule.id),
            ("queue", schedule.queue),
            ("description", schedule.description),
            ("operation", schedule.operation),
            ("payload", short_payload(schedule.payload) if has_payload else None),
            ("due", cadence_text(schedule)),
            ("paused", f"yes{why}" if schedule.paused else None),
            ("next", "\n".join(str(when(moment, own)) for moment in schedule.next_runs)),
            ("next", None if schedule.next_runs or schedule.paused else "never"),
            ("from", when(schedule.start_at, own)),
            ("until", when(schedule.end_at, own)),
            ("spread", f"up to {span(schedule.jitter)}" if schedule.jitter else None),
            ("overlap", schedule.overlap.replace("_", " ")),
            ("missed", schedule.missed.replace("_", " ")),
            ("catch up", span(schedule.catch_up_window)),
            ("priority", schedule.priority or None),
            ("requirements", pairs(schedule.requirements)),
            ("labels", pairs(schedule.labels)),
            ("retry", retry_text(schedule.retry)),
            ("timeout", span(schedule.execution_timeout)),
            ("unique key", key.key if key else None),
            ("kept for", span(schedule.retention)),
            (
                "runs",
                f"{schedule.total_runs}, {schedule.skipped_runs} skipped,"
                f" {schedule.missed_runs} missed",
            ),
            ("created", when(schedule.created_at)),
            ("changed", when(schedule.updated_at)),
        ]
    )
    if schedule.recent_runs:
        put()
        print_rows(
            ["JOB", "DUE", "SUBMITTED", "BY"],
            [
                [
                    run.job_id,
                    when(run.due_at, own),
                    when(run.submitted_at, own),
                    "trigger" if run.triggered else "schedule",
                ]
                for run in schedule.recent_runs
            ],
            empty="",
        )


def zone_of(schedule: Schedule) -> ZoneInfo | None:
    """Returns the zone in which a schedule's moments are shown; None: the local one."""
    if schedule.cron is None:
        return None
    try:
        return ZoneInfo(schedule.time_zone)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        return ZoneInfo("UTC")  # the server knows a zone that this machine does not


def cadence_text(schedule: Schedule) -> str:
    """Shows when a schedule is due."""
    if schedule.cron is None:
        return f"every {span(schedule.every or timedelta())}"
    return f"{schedule.cron} {schedule.time_zone}"


def next_text(schedule: Schedule) -> str | None:
    """Shows the next moment of a schedule, or why there is none."""
    if schedule.paused:
        return "paused"
    return when(schedule.next_runs[0], zone_of(schedule)) if schedule.next_runs else "never"


_IN_OPTIONS = {
    "give cron='30 6 * * *' or every=timedelta(hours=1)": "give --cron '30 6 * * *' or --every 1h",
    "give cron or every, not both": "give --cron or --every, not both",
    "time_zone goes with cron": "--time-zone goes with --cron",
    "anchor goes with every": "--anchor goes with --every",
}


def _as_options(text: str) -> str:
    """Says an error of the client's in the words of the command line."""
    return _IN_OPTIONS.get(text, text)

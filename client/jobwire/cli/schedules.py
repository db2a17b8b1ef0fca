"""Commands for recurring jobs."""

from __future__ import annotations

from typing import Any

import click

from jobwire.cli.group import Settings, cli, common, pass_settings
from jobwire.cli.output import (
    print_json,
    print_rows,
)
from jobwire.cli.parameters import read_payload
from jobwire.cli.schedule_options import given_schedule_options, schedule_options
from jobwire.cli.schedule_views import cadence_text, next_text, print_schedule
from jobwire.cli.terminal import put

_QUEUE = click.option(
    "--queue", "-q", default="default", show_default=True, help="The queue of the schedule."
)
_REASON = click.option(
    "--reason", "-m", default="", help="A text for people, kept with the schedule."
)


@cli.group(invoke_without_command=True)
@_QUEUE
@common
@click.pass_context
def schedules(context: click.Context, queue: str) -> None:
    """List, create and change recurring jobs."""
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
    """Show a schedule, when it is due next, and its latest jobs."""
    with settings.client() as client:
        print_schedule(client.get_schedule(schedule_id, queue=queue), settings)


@schedules.command("create")
@click.argument("schedule_id")
@click.argument("operation")
@click.argument("payload", required=False)
@_QUEUE
@schedule_options
@click.option("--paused", is_flag=True, help="Create it paused.")
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
    """Create a schedule, whose job is submitted whenever it is due.

    PAYLOAD is JSON text, @FILE, or - for standard input.

    \b
    Examples:
      jobwire schedules create nightly report.build --cron '30 6 * * *' -z Europe/Berlin
      jobwire schedules create ping site.check '{"url": "https://example.com"}' --every 5m
    """
    given = given_schedule_options(**options)
    content = read_payload(payload, as_bytes=as_bytes)
    with settings.client() as client:
        try:
            made = client.create_schedule(
                schedule_id, operation, content, queue=queue, paused=paused, **given
            )
        except ValueError as error:
            raise click.UsageError(_as_options(str(error))) from error
        print_schedule(made, settings)


@schedules.command("update")
@click.argument("schedule_id")
@_QUEUE
@click.option("--operation", "-o", help="The operation of its jobs.")
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
    help="Remove this setting. Repeatable.",
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
    """Change a schedule; what is not named stays."""
    changes = given_schedule_options(**options)
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
        print_schedule(changed, settings)


@schedules.command("pause")
@click.argument("schedule_id")
@_QUEUE
@_REASON
@common
@pass_settings
def pause_schedule(settings: Settings, schedule_id: str, queue: str, reason: str) -> None:
    """Pause a schedule; what it misses meanwhile is not made up for."""
    with settings.client() as client:
        print_schedule(client.pause_schedule(schedule_id, reason, queue=queue), settings)


@schedules.command("resume")
@click.argument("schedule_id")
@_QUEUE
@common
@pass_settings
def resume_schedule(settings: Settings, schedule_id: str, queue: str) -> None:
    """Resume a paused schedule."""
    with settings.client() as client:
        print_schedule(client.resume_schedule(schedule_id, queue=queue), settings)


@schedules.command("trigger")
@click.argument("schedule_id")
@_QUEUE
@click.option("--request-id", help="Submit one job, however often this id is sent within a day.")
@common
@pass_settings
def trigger_schedule(
    settings: Settings, schedule_id: str, queue: str, request_id: str | None
) -> None:
    """Submit a schedule's job now, and print its id."""
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
    """Delete schedules; the jobs that they submitted stay."""
    with settings.client() as client:
        for schedule_id in schedule_ids:
            client.delete_schedule(schedule_id, queue=queue)


_IN_OPTIONS = {
    "give cron='30 6 * * *' or every=timedelta(hours=1)": "give --cron '30 6 * * *' or --every 1h",
    "give cron or every, not both": "give --cron or --every, not both",
    "time_zone goes with cron": "--time-zone goes with --cron",
    "anchor goes with every": "--anchor goes with --every",
}


def _as_options(text: str) -> str:
    """Put an error of the client into the words of the command line."""
    return _IN_OPTIONS.get(text, text)

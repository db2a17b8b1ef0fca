"""How schedules are shown."""

from __future__ import annotations

from datetime import timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from jobwire.cli.group import Settings
from jobwire.cli.output import (
    pairs,
    payload_text,
    print_facts,
    print_json,
    print_rows,
    retry_text,
    span,
    when,
)
from jobwire.cli.terminal import put
from jobwire.schedules import Schedule


def _after_due(after: timedelta | None) -> str | None:
    return None if after is None else f"{span(after)} after the due moment"


def print_schedule(schedule: Schedule, settings: Settings) -> None:
    """Print a schedule with its next moments and its latest jobs."""
    if settings.json:
        print_json(schedule)
        return
    own = zone_of(schedule)
    why = f": {schedule.pause_reason}" if schedule.pause_reason else ""
    key = schedule.unique_key
    print_facts(
        [
            ("schedule", schedule.id),
            ("queue", schedule.queue),
            ("description", schedule.description),
            ("operation", schedule.operation),
            ("payload", payload_text(schedule.raw_payload)),
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
            ("priority", schedule.priority),
            ("requirements", pairs(schedule.requirements)),
            ("labels", pairs(schedule.labels)),
            ("retry", retry_text(schedule.retry)),
            ("timeout", span(schedule.execution_timeout)),
            ("unique key", key.key if key else None),
            ("kept for", span(schedule.retention)),
            ("expires", _after_due(schedule.expires_after)),
            ("deadline", _after_due(schedule.deadline)),
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
    """Return the zone in which a schedule's moments are shown; None: the local one."""
    if schedule.cron is None:
        return None
    try:
        return ZoneInfo(schedule.time_zone)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        return ZoneInfo("UTC")  # the server knows a zone that this machine does not


def cadence_text(schedule: Schedule) -> str:
    """Show when a schedule is due."""
    if schedule.cron is None:
        return f"every {span(schedule.every or timedelta())}"
    return f"{schedule.cron} {schedule.time_zone}"


def next_text(schedule: Schedule) -> str | None:
    """Show the next moment of a schedule, or why there is none."""
    if schedule.paused:
        return "paused"
    return when(schedule.next_runs[0], zone_of(schedule)) if schedule.next_runs else "never"

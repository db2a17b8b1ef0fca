"""Commands for producers: submit, get, list, cancel."""

from __future__ import annotations

import itertools
from typing import Any

import click

from jobwire.cli.app import Settings, cli, common, pass_settings
from jobwire.cli.output import (
    pairs,
    print_facts,
    print_json,
    print_rows,
    progress_text,
    short_payload,
    span,
    when,
)
from jobwire.cli.parameters import read_payload
from jobwire.cli.submission import submission_options, submit_options
from jobwire.cli.views import show_watch
from jobwire.models import Attempt, Job, JobState

STATES = click.Choice([state.value for state in JobState][1:], case_sensitive=False)


@cli.command()
@click.argument("operation")
@click.argument("payload", required=False)
@submission_options
@click.option("--wait", "-w", is_flag=True, help="Watch it to its end and print its result.")
@common
@pass_settings
def submit(
    settings: Settings,
    /,
    operation: str,
    payload: str | None,
    as_bytes: bool,
    wait: bool,
    **options: Any,
) -> int:
    """Submit a job and print its id.

    PAYLOAD is JSON text, @FILE, or - for standard input. Durations are 250ms, 10s, 5m, 1h30m or
    2d; moments are like 2030-01-31T08:00:00Z.

    \b
    Example:
      jobwire submit image.thumbnail '{"url": "https://example.com/a.png"}' --wait
    """
    chosen = submit_options(**options)
    with settings.client() as client:
        handle = client.submit(operation, read_payload(payload, as_bytes=as_bytes), **chosen)
        if wait:
            return show_watch(handle.watch(output=True), as_json=settings.json)
    if settings.json:
        print_json({"job_id": handle.id, "state": handle.state, "existed": handle.existed})
    else:
        click.echo(handle.id)
    return 0


@cli.command()
@click.argument("job_id")
@common
@pass_settings
def get(settings: Settings, job_id: str) -> None:
    """Show a job with its payload, result and attempts."""
    with settings.client() as client:
        job = client.get(job_id)
    if settings.json:
        print_json(job)
    else:
        _print_job(job)


def _print_job(job: Job) -> None:
    failure = job.failure
    budgets = f"{job.failures} failures, {job.crashes} crashes, {job.interruptions} interruptions"
    has_result = job.raw_result.WhichOneof("kind") is not None
    has_payload = job.raw_payload.WhichOneof("kind") is not None
    print_facts(
        [
            ("job", job.id),
            ("state", job.state),
            ("operation", job.operation),
            ("queue", job.queue),
            ("priority", job.priority or None),
            ("requirements", pairs(job.requirements)),
            ("labels", pairs(job.labels)),
            ("created", when(job.created_at)),
            ("runs at", when(job.run_at) if job.state is JobState.SCHEDULED else None),
            ("expires", when(job.expires_at)),
            ("started", when(job.started_at)),
            ("finished", when(job.finished_at)),
            ("forgotten", when(job.purge_at)),
            ("attempt", f"{job.attempt} ({budgets})" if job.attempt else None),
            ("worker", job.worker_id),
            ("token", job.fencing_token or None),
            ("lease ends", when(job.lease_expires_at)),
            ("progress", progress_text(job)),
            ("cancelled", job.cancel_reason),
            ("payload", short_payload(job.payload) if has_payload else None),
            ("result", short_payload(job.result) if has_result else None),
            ("failure", f"{failure.type}: {failure.message}" if failure else None),
            ("stack", failure.stack if failure else None),
        ]
    )
    if job.attempts:
        click.echo()
        print_rows(
            ["ATTEMPT", "OUTCOME", "STARTED", "TOOK", "WORKER", "WHY"],
            [_attempt_row(attempt) for attempt in job.attempts],
            empty="",
        )


def _attempt_row(attempt: Attempt) -> list[str | int | None]:
    took = None
    if attempt.started_at is not None and attempt.ended_at is not None:
        took = span(attempt.ended_at - attempt.started_at)
    failure = attempt.failure
    why = ": ".join(part for part in (failure.type, failure.message) if part) if failure else None
    outcome = "RUNNING" if attempt.ended_at is None else attempt.outcome.value
    return [attempt.number, outcome, when(attempt.started_at), took, attempt.worker_id, why]


@cli.command("list")
@click.option("--queue", "-q", default="default", show_default=True)
@click.option("--state", "-s", type=STATES, multiple=True, help="May be repeated. Default: all.")
@click.option("--operation", "-o", default="", help="Only jobs of it.")
@click.option(
    "--limit", "-n", type=click.IntRange(0), default=50, show_default=True, help="0: all."
)
@common
@pass_settings
def list_jobs(
    settings: Settings, queue: str, state: tuple[str, ...], operation: str, limit: int
) -> None:
    """List the jobs of a queue."""
    with settings.client() as client:
        found = client.list(
            queue,
            states=[JobState(name) for name in state],
            operation=operation,
            page_size=min(limit, 1000) or 1000,
        )
        jobs = itertools.islice(found, limit) if limit else found
        if settings.json:
            for job in jobs:
                print_json(job)
            return
        print_rows(
            ["JOB", "STATE", "OPERATION", "ATTEMPT", "CREATED", "NOTE"],
            (_job_row(job) for job in jobs),
            empty=f"no such jobs in {queue}",
        )


def _job_row(job: Job) -> list[str | int | JobState | None]:
    note = progress_text(job) if job.state is JobState.RUNNING else ""
    if job.state in (JobState.FAILED, JobState.SCHEDULED) and job.failure is not None:
        note = f"{job.failure.type}: {job.failure.message}"
    return [job.id, job.state, job.operation, job.attempt or None, when(job.created_at), note]


@cli.command()
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)
@click.option("--reason", "-m", default="", help="For people; kept with the job.")
@common
@pass_settings
def cancel(settings: Settings, job_ids: tuple[str, ...], reason: str) -> None:
    """Ask for the end of jobs: at once, or by their worker if they run."""
    with settings.client() as client:
        for job_id in job_ids:
            job = client.cancel(job_id, reason)
            if settings.json:
                print_json(job)
            else:
                click.echo(f"{job.id} {job.state}")

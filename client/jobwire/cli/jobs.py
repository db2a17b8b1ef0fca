"""Commands for producers: submit, get, list, dead."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable
from typing import Any

import click

from jobwire.cli.failures import say
from jobwire.cli.filters import filter_of, filter_options, states_option
from jobwire.cli.group import Settings, cli, common, pass_settings
from jobwire.cli.output import (
    failure_type,
    one_line,
    pairs,
    payload_text,
    plural,
    print_facts,
    print_json,
    print_rows,
    progress_text,
    retry_text,
    span,
    when,
)
from jobwire.cli.parameters import count, read_payload
from jobwire.cli.submission import submission_options, submit_options
from jobwire.cli.terminal import put
from jobwire.cli.views import show_watch
from jobwire.models import Attempt, Failure, Job, JobState, Redrive
from jobwire.unique import UniqueKey

STATES = [state.value for state in JobState][1:]
_ATTEMPT_COLUMNS = ["ATTEMPT", "OUTCOME", "STARTED", "TOOK", "WORKER", "WHY"]
_QUEUE = click.option(
    "--queue",
    "-q",
    default="default",
    show_default=True,
    help="The queue to look in, or a pattern in quotes: 'billing-*', or '*' for all.",
)
_REVERSE = click.option(
    "--reverse", is_flag=True, help="The other way round within each state, newest first."
)
_LIMIT = click.option(
    "--limit",
    "-n",
    type=count,
    default=50,
    show_default=True,
    help="Show at most this many; 0: all.",
)


@cli.command()
@click.argument("operation")
@click.argument("payload", required=False)
@submission_options
@click.option("--wait", "-w", is_flag=True, help="Follow the job to its end and print its result.")
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

    PAYLOAD is JSON text, @FILE, or - for standard input. Write durations as 250ms, 10s, 5m, 1h30m
    or 2d, and times as 2030-01-31T08:00:00Z.

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
        print_json(
            {
                "job_id": handle.id,
                "state": handle.state,
                "existed": handle.existed,
                "forgotten": handle.forgotten,
            }
        )
        return 0
    put(handle.id)
    if handle.forgotten:
        say("the job of this request has ended and was forgotten; nothing was submitted")
    elif handle.existed:
        say("this job exists already; nothing was submitted")
    return 0


@cli.command()
@click.argument("job_id")
@common
@pass_settings
def get(settings: Settings, job_id: str) -> None:
    """Show a job and each of its attempts.

    With payload, result, progress and checkpoint, and the stack traces of what went wrong.
    """
    with settings.client() as client:
        job = client.get(job_id)
    if settings.json:
        print_json(job)
    else:
        print_job(job)


def print_job(job: Job) -> None:
    """Print a job with its attempts and their stack traces."""
    failure = job.failure
    crashes = "1 crash" if job.crashes == 1 else f"{job.crashes} crashes"
    budgets = f"{plural(job.failures, 'failure')}, {crashes}, "
    budgets += plural(job.interruptions, "interruption")
    print_facts(
        [
            ("job", job.id),
            ("state", job.state),
            ("operation", job.operation),
            ("queue", job.queue),
            ("priority", job.priority or None),
            ("requirements", pairs(job.requirements)),
            ("labels", pairs(job.labels)),
            ("headers", pairs(job.headers)),
            ("created", when(job.created_at)),
            ("runs at", when(job.run_at) if job.state is JobState.SCHEDULED else None),
            ("expires", when(job.expires_at)),
            ("deadline", when(job.deadline)),
            ("unique key", _unique(job.unique_key)),
            ("retry", retry_text(job.retry)),
            ("timeout", span(job.execution_timeout)),
            ("kept for", span(job.retention)),
            ("started", when(job.started_at)),
            ("finished", when(job.finished_at)),
            ("forgotten", when(job.purge_at)),
            ("attempt", f"{job.attempt} ({budgets})" if job.attempt else None),
            ("worker", job.worker_id),
            ("token", job.fencing_token or None),
            ("lease ends", when(job.lease_expires_at)),
            ("progress", progress_text(job)),
            ("cancelled", job.cancel_reason),
            ("redriven", _redriven(job.last_redrive)),
            ("payload", payload_text(job.raw_payload)),
            ("result", payload_text(job.raw_result)),
            ("checkpoint", payload_text(job.raw_checkpoint)),
            ("failure", _failure_text(failure)),
            # Those of the attempts are shown with them.
            ("stack", failure.stack if failure and not _is_shown(job, failure) else None),
        ]
    )
    if job.attempts:
        put()
        print_rows(
            _ATTEMPT_COLUMNS,
            [_attempt_row(attempt) for attempt in job.attempts],
            empty="",
        )
        _print_stacks(job.attempts)


def _print_stacks(attempts: Iterable[Attempt]) -> None:
    """Print the stack of each failed attempt; repeated ones once."""
    told: dict[str, int] = {}
    for attempt in attempts:
        stack = attempt.failure.stack if attempt.failure else ""
        if not stack:
            continue
        put()
        if stack in told:
            put(f"attempt {attempt.number}: as in attempt {told[stack]}")
            continue
        told[stack] = attempt.number
        put(f"attempt {attempt.number}:")
        put(textwrap.indent(stack.rstrip(), "  "))


def _is_shown(job: Job, failure: Failure) -> bool:
    return any(a.failure is not None and a.failure.stack == failure.stack for a in job.attempts)


def _failure_text(failure: Failure | None) -> str | None:
    if failure is None:
        return None
    return ": ".join(part for part in (failure_type(failure), failure.message) if part)


def _unique(key: UniqueKey | None) -> str | None:
    if key is None:
        return None
    for_so_long = f" for {span(key.period)}" if key.period is not None else ""
    return f"{key.key} ({key.scope}{for_so_long}, {key.on_conflict.replace('_', ' ')})"


def _redriven(redrive: Redrive | None) -> str | None:
    if redrive is None:
        return None
    times = "once" if redrive.number == 1 else f"{redrive.number} times"
    why = f": {redrive.reason}" if redrive.reason else ""
    return f"{times}, last {when(redrive.redriven_at)} out of {redrive.from_state}{why}"


def _attempt_row(attempt: Attempt) -> list[str | int | None]:
    took = None
    if attempt.started_at is not None and attempt.ended_at is not None:
        took = span(attempt.ended_at - attempt.started_at)
    failure = attempt.failure
    why = one_line(_failure_text(failure) or "", 200) or None
    outcome = "RUNNING" if attempt.ended_at is None else attempt.outcome.value
    return [attempt.number, outcome, when(attempt.started_at), took, attempt.worker_id, why]


@cli.command()
@click.argument("job_id")
@_LIMIT
@common
@pass_settings
def attempts(settings: Settings, job_id: str, limit: int) -> None:
    """List the attempts of a job, newest first.

    `jobwire get` shows the newest with the job; here are all that are kept, the latest 100. --json
    has their stack traces and details.
    """
    with settings.client() as client:
        found = client.list_attempts(job_id)
        listed = itertools.islice(found, limit) if limit else found
        if settings.json:
            for attempt in listed:
                print_json(attempt)
            return
        print_rows(_ATTEMPT_COLUMNS, map(_attempt_row, listed), empty="it has not been started yet")


@cli.command("list")
@_QUEUE
@states_option(STATES, "all")
@filter_options("were submitted")
@_REVERSE
@_LIMIT
@common
@pass_settings
def list_jobs(settings: Settings, /, queue: str, reverse: bool, limit: int, **which: Any) -> None:
    """List the jobs of a queue, or of the queues of a pattern.

    \b
    Examples:
      jobwire list --queue images --since 2h
      jobwire list --queue '*' --state failed
    """
    with settings.client() as client:
        found = client.list_jobs(
            queue,
            order="state_reverse" if reverse else "state",
            page_size=min(limit, 1000) or 1000,
            **filter_of(**which, by_submission=True),
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
        note = f"{failure_type(job.failure)}: {job.failure.message}"
    return [job.id, job.state, job.operation, job.attempt or None, when(job.created_at), note]


@cli.command()
@_QUEUE
@filter_options("failed")
@_REVERSE
@_LIMIT
@common
@pass_settings
def dead(settings: Settings, /, queue: str, reverse: bool, limit: int, **which: Any) -> None:
    """List jobs that failed for good.

    `jobwire get` shows one with all its attempts; `jobwire retry` and `jobwire redrive` put them
    back.
    """
    with settings.client() as client:
        found = client.list_jobs(
            queue,
            order="state_reverse" if reverse else "state",
            page_size=min(limit, 1000) or 1000,
            **filter_of(**which, state=(JobState.FAILED.value,)),
        )
        jobs = itertools.islice(found, limit) if limit else found
        if settings.json:
            for job in jobs:
                print_json(job)
            return
        print_rows(
            ["JOB", "OPERATION", "FAILURE", "MESSAGE", "FAILED", "ATTEMPTS"],
            (_dead_row(job) for job in jobs),
            empty=f"no dead letters in {queue}",
        )


def _dead_row(job: Job) -> list[str | int | None]:
    failure = job.failure
    return [
        job.id,
        job.operation,
        failure_type(failure) if failure else None,
        one_line(failure.message, 100) if failure else None,
        when(job.finished_at),
        job.attempt,
    ]

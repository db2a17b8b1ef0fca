"""The options that say how a job is to run, for every command that submits one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click

from jobwire._requests import SubmitOptions
from jobwire.cli.parameters import duration, key_value, size, time
from jobwire.models import OutputPolicy, RetryPolicy

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--queue", "-q", default="default", show_default=True),
    click.option("--priority", "-p", type=click.IntRange(0, 255), default=0, show_default=True),
    click.option(
        "--require",
        "-r",
        type=key_value,
        metavar="KEY=VALUE",
        multiple=True,
        help="A label of the worker.",
    ),
    click.option(
        "--label",
        "-l",
        type=key_value,
        metavar="KEY=VALUE",
        multiple=True,
        help="A label of the job.",
    ),
    click.option("--max-attempts", type=click.IntRange(1, 1000), help="1: no retry."),
    click.option("--initial-backoff", type=duration, help="Before the second attempt."),
    click.option("--max-backoff", type=duration, help="The longest wait between attempts."),
    click.option("--execution-timeout", type=duration, help="For one attempt."),
    click.option("--delay", type=duration, help="Not before so long from now."),
    click.option("--run-at", type=time, help="Not before this moment."),
    click.option("--expires-at", type=time, help="Not started after this moment."),
    click.option("--max-output", type=size, help="How much output is kept, such as 4MiB."),
    click.option("--trim-output", is_flag=True, help="Above it, drop the oldest output."),
    click.option("--job-id", help="The id to give it; the same id twice is the same job."),
    click.option("--bytes", "as_bytes", is_flag=True, help="Send the payload as bytes, not JSON."),
)


def submission_options(function: F) -> F:
    """Adds the options; the command gets them by name."""
    for decorate in reversed(_OPTIONS):
        function = decorate(function)
    return function


def submit_options(
    *,
    queue: str,
    priority: int,
    require: tuple[tuple[str, str], ...],
    label: tuple[tuple[str, str], ...],
    max_attempts: int | None,
    initial_backoff: float | None,
    max_backoff: float | None,
    execution_timeout: float | None,
    delay: float | None,
    run_at: datetime | None,
    expires_at: datetime | None,
    max_output: int | None,
    trim_output: bool,
    job_id: str | None,
) -> SubmitOptions:
    """Turns them into what `Client.submit` takes.

    Raises:
        click.UsageError: Two of them exclude each other.
    """
    if delay is not None and run_at is not None:
        raise click.UsageError("give --delay or --run-at, not both")
    has_policy = max_output is not None or trim_output
    return {
        "queue": queue,
        "priority": priority,
        "requirements": dict(require),
        "labels": dict(label),
        "retry": RetryPolicy(
            max_attempts=max_attempts, initial_backoff=initial_backoff, max_backoff=max_backoff
        ),
        "execution_timeout": execution_timeout,
        "delay": delay,
        "run_at": run_at,
        "expires_at": expires_at,
        "output": OutputPolicy(max_bytes=max_output, trim=trim_output) if has_policy else None,
        "job_id": job_id,
    }

"""The options of a job, for every command that submits or schedules one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar, get_args

import click

from jobwire._requests import JobOptions, SubmitOptions
from jobwire.cli.parameters import duration, key_value, size, time, time_or_span, words
from jobwire.models import OutputPolicy, RetryPolicy
from jobwire.unique import OnConflict, Scope, UniqueKey

F = TypeVar("F", bound=Callable[..., Any])
Pairs = tuple[tuple[str, str], ...]


_JOB_OPTIONS = (
    click.option(
        "--priority",
        "-p",
        type=click.IntRange(0, 255),
        metavar="N",
        help="Higher goes first. Default: as the queue is configured, or 0.",
    ),
    click.option(
        "--require",
        "-r",
        type=key_value,
        metavar="KEY=VALUE",
        multiple=True,
        help="A label that the worker must have. Repeatable.",
    ),
    click.option(
        "--label",
        "-l",
        type=key_value,
        metavar="KEY=VALUE",
        multiple=True,
        help="A label for the job. Repeatable.",
    ),
    click.option(
        "--header",
        type=key_value,
        metavar="KEY=VALUE",
        multiple=True,
        help="What travels with the job for other programs, such as traceparent. Repeatable.",
    ),
    click.option(
        "--require-feature",
        metavar="NAME",
        multiple=True,
        help="Refuse the job unless the server has this feature (jobwire info lists them)."
        " Repeatable.",
    ),
    click.option(
        "--max-attempts",
        type=click.IntRange(1, 1000),
        metavar="N",
        help="How many failures end it; 1: no retry.",
    ),
    click.option("--initial-backoff", type=duration, help="The wait before the second attempt."),
    click.option("--max-backoff", type=duration, help="The longest wait between attempts."),
    click.option(
        "--multiplier",
        type=click.FloatRange(1, 10),
        metavar="X",
        help="How much longer each wait is than the one before.",
    ),
    click.option(
        "--jitter",
        type=click.FloatRange(0, 1),
        metavar="X",
        help="The share of each wait that is random.",
    ),
    click.option("--execution-timeout", type=duration, help="How long one attempt may run."),
    click.option(
        "--unique-key", metavar="KEY", help="A key that only one job of the queue holds at a time."
    ),
    click.option(
        "--unique-scope",
        type=words(get_args(Scope)),
        help="How long the job holds the key. Default: until it has ended.",
    ),
    click.option(
        "--unique-period", type=duration, help="Hold the key for this long, whatever happens."
    ),
    click.option(
        "--on-conflict",
        type=words(get_args(OnConflict)),
        help="What to do if another job holds the key. Default: return-existing.",
    ),
    click.option("--retention", type=duration, help="How long to keep the job after it has ended."),
    click.option(
        "--expires-after",
        type=duration,
        help="Do not start it later than this long from now; in a schedule, from its due moment.",
    ),
    click.option("--max-output", type=size, help="How much output to keep, such as 4MiB."),
    click.option("--trim-output", is_flag=True, help="Above --max-output, drop the oldest output."),
)
_SUBMIT_OPTIONS = (
    click.option(
        "--queue", "-q", default="default", show_default=True, help="The queue to put it in."
    ),
    *_JOB_OPTIONS,
    click.option("--delay", type=duration, help="Start it no sooner than this long from now."),
    click.option("--run-at", type=time, help="Start it no sooner than this."),
    click.option("--expires-at", type=time, help="Do not start it after this."),
    click.option(
        "--deadline",
        type=time_or_span,
        metavar="TIME|DURATION",
        help="Fail it unless it is finished by then.",
    ),
    click.option("--job-id", help="The id to give it. The same id twice is the same job."),
    click.option(
        "--request-id",
        help="Submit the job once, however often this id and job are sent within a day.",
    ),
    click.option("--bytes", "as_bytes", is_flag=True, help="Send the payload as bytes, not JSON."),
)


def submission_options(function: F) -> F:
    """Add the options of a submission; the command gets them by name."""
    for decorate in reversed(_SUBMIT_OPTIONS):
        function = decorate(function)
    return function


def job_options(function: F) -> F:
    """Add those options that a schedule takes as well."""
    for decorate in reversed(_JOB_OPTIONS):
        function = decorate(function)
    return function


def given_options(
    *,
    priority: int | None,
    require: Pairs,
    label: Pairs,
    header: Pairs,
    require_feature: tuple[str, ...],
    max_attempts: int | None,
    initial_backoff: float | None,
    max_backoff: float | None,
    multiplier: float | None,
    jitter: float | None,
    execution_timeout: float | None,
    unique_key: str | None,
    unique_scope: str | None,
    unique_period: float | None,
    on_conflict: str | None,
    retention: float | None,
    expires_after: float | None,
    max_output: int | None,
    trim_output: bool,
) -> JobOptions:
    """Turn the options into arguments of the client; options that were not given are left out.

    Raises:
        click.UsageError: Two of them exclude each other.
    """
    given: JobOptions = {}
    if priority is not None:
        given["priority"] = priority
    if require:
        given["requirements"] = dict(require)
    if label:
        given["labels"] = dict(label)
    if header:
        given["headers"] = dict(header)
    if require_feature:
        given["required_features"] = require_feature
    policy = RetryPolicy(
        max_attempts=max_attempts,
        initial_backoff=initial_backoff,
        max_backoff=max_backoff,
        multiplier=multiplier,
        jitter=jitter,
    )
    if policy != RetryPolicy():
        given["retry"] = policy
    if execution_timeout is not None:
        given["execution_timeout"] = execution_timeout
    if unique_key is not None:
        given["unique_key"] = _unique_key(unique_key, unique_scope, unique_period, on_conflict)
    elif unique_scope or unique_period is not None or on_conflict:
        raise click.UsageError(
            "--unique-scope, --unique-period and --on-conflict need --unique-key"
        )
    if retention is not None:
        given["retention"] = retention
    if expires_after is not None:
        given["expires_after"] = expires_after
    if max_output is not None or trim_output:
        given["output"] = OutputPolicy(max_bytes=max_output, trim=trim_output)
    return given


def _unique_key(
    key: str, scope: str | None, period: float | None, on_conflict: str | None
) -> UniqueKey:
    named: Any = {
        "scope": scope,
        "on_conflict": (on_conflict or "return-existing").replace("-", "_"),
    }
    try:
        return UniqueKey(key, period=period, **named)
    except ValueError as error:
        raise click.UsageError(
            "--unique-period and --unique-scope period need each other"
        ) from error


def submit_options(
    *,
    queue: str,
    delay: float | None,
    run_at: datetime | None,
    expires_at: datetime | None,
    deadline: datetime | timedelta | None,
    job_id: str | None,
    request_id: str | None,
    **options: Any,
) -> SubmitOptions:
    """Turn the options into arguments of `Client.submit`.

    Raises:
        click.UsageError: Two of them exclude each other.
    """
    if delay is not None and run_at is not None:
        raise click.UsageError("give --delay or --run-at, not both")
    if expires_at is not None and options["expires_after"] is not None:
        raise click.UsageError("give --expires-at or --expires-after, not both")
    return {
        **given_options(**options),
        "queue": queue,
        "delay": delay,
        "run_at": run_at,
        "expires_at": expires_at,
        "deadline": deadline,
        "job_id": job_id,
        "request_id": request_id,
    }

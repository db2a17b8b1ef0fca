"""Commands that cancel, redrive and purge jobs: one by one, or all that match."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from jobwire._sync.bulk import BulkAction
from jobwire.bulk import BulkProgress
from jobwire.cli.failures import Exit, say
from jobwire.cli.filters import LIVE, PATTERN, TERMINAL, filter_of, filter_options, states_option
from jobwire.cli.group import Settings, cli, common, pass_settings
from jobwire.cli.output import plural, print_json
from jobwire.cli.parameters import count, duration
from jobwire.cli.terminal import console, has_screen, put
from jobwire.models import Job, JobState

_REASON = click.option("--reason", "-m", default="", help="A text for people, kept with the job.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Count the jobs, and change nothing.")
_YES = click.option("--yes", "-y", is_flag=True, help="Do not ask first.")
_MOST = click.option("--max-jobs", "-n", type=count, default=0, help="At most this many. 0: all.")
# Of characters that every encoding has.
_SPINNER = "line"
_REDRIVEN = [state for state in TERMINAL if state != JobState.SUCCEEDED]


@cli.command()
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)
@_REASON
@click.option("--delay", type=duration, help="Start it no sooner than this long from now.")
@common
@pass_settings
def retry(settings: Settings, job_ids: tuple[str, ...], reason: str, delay: float | None) -> None:
    """Put jobs back that failed, expired or were cancelled.

    Their failures are counted from 0 again; attempts, output and checkpoint stay. `jobwire redrive`
    does this for all jobs of a queue that match.
    """
    with settings.client() as client:
        for job_id in job_ids:
            _print_state(client.retry_job(job_id, reason, delay=delay), settings)


@cli.command()
@click.option("--queue", "-q", required=True, help=f"The queue whose jobs are meant{PATTERN}.")
@states_option(_REDRIVEN, "FAILED, the dead letters")
@filter_options("ended")
@click.option(
    "--rate",
    type=click.FloatRange(0.01, 100_000),
    metavar="X",
    help="At most this many become ready a second.",
)
@_MOST
@_REASON
@_DRY_RUN
@_YES
@common
@pass_settings
def redrive(
    settings: Settings,
    /,
    queue: str,
    rate: float | None,
    max_jobs: int,
    reason: str,
    dry_run: bool,
    yes: bool,
    **which: Any,
) -> int:
    """Put back all jobs of a queue that match.

    These are its dead letters, unless --state says otherwise. On a terminal it counts them first
    and asks.

    \b
    Example:
      jobwire redrive -q images --failure-type Timeout --since 2h --rate 50
    """
    chosen = filter_of(**which)
    with settings.client() as client:

        def action(*, dry_run: bool) -> BulkAction:
            return client.retry_jobs(
                queue,
                reason=reason,
                dry_run=dry_run,
                max_jobs=max_jobs,
                max_per_second=rate or 0.0,
                **chosen,
            )

        return _act(settings, action, ("redrive", "redriven"), dry_run=dry_run, yes=yes)


@cli.command()
@click.argument("job_ids", metavar="[JOB_ID...]", nargs=-1)
@click.option(
    "--queue",
    "-q",
    default="",
    help=f"Instead of ids: all live jobs of this queue that match{PATTERN}.",
)
@states_option(LIVE, "all live ones")
@filter_options("were submitted")
@_MOST
@_REASON
@_DRY_RUN
@_YES
@common
@pass_settings
def cancel(
    settings: Settings,
    /,
    job_ids: tuple[str, ...],
    queue: str,
    max_jobs: int,
    reason: str,
    dry_run: bool,
    yes: bool,
    **which: Any,
) -> int:
    """Cancel jobs.

    Jobs that wait end at once; those that run end when their worker has stopped them. Name jobs by
    their ids, or with --queue all live jobs that match. On a terminal it counts those first and
    asks.
    """
    chosen = filter_of(**which, by_submission=True)
    narrows = dry_run or max_jobs or any(chosen.values())
    if job_ids and (queue or narrows):
        raise click.UsageError("give job ids, or --queue with filters, not both")
    if not job_ids and not queue:
        raise click.UsageError("give job ids, or --queue")
    with settings.client() as client:
        for job_id in job_ids:
            _print_state(client.cancel(job_id, reason), settings)
        if job_ids:
            return Exit.OK

        def action(*, dry_run: bool) -> BulkAction:
            return client.cancel_jobs(
                queue, reason=reason, dry_run=dry_run, max_jobs=max_jobs, **chosen
            )

        return _act(settings, action, ("cancel", "cancelled"), dry_run=dry_run, yes=yes)


@cli.command()
@click.option("--queue", "-q", required=True, help=f"The queue whose jobs are meant{PATTERN}.")
@states_option(TERMINAL, "all terminal ones")
@filter_options("ended")
@_MOST
@_DRY_RUN
@_YES
@common
@pass_settings
def purge(
    settings: Settings, /, queue: str, max_jobs: int, dry_run: bool, yes: bool, **which: Any
) -> int:
    """Purge jobs that have ended.

    They are gone for good, with all that is kept of them. On a terminal it counts them first and
    asks; elsewhere it needs --yes. Live jobs are never purged: cancel them first.
    """
    if not yes and not dry_run and not sys.stdin.isatty():
        raise click.UsageError("purged jobs can't be brought back: give --yes, or try --dry-run")
    chosen = filter_of(**which)
    with settings.client() as client:

        def action(*, dry_run: bool) -> BulkAction:
            return client.purge_jobs(queue, dry_run=dry_run, max_jobs=max_jobs, **chosen)

        return _act(settings, action, ("purge", "purged"), dry_run=dry_run, yes=yes)


def _print_state(job: Job, settings: Settings) -> None:
    if settings.json:
        print_json(job)
    else:
        put(f"{job.id} {job.state}")


def _act(
    settings: Settings,
    action: Callable[..., BulkAction],
    words: tuple[str, str],
    *,
    dry_run: bool,
    yes: bool,
) -> int:
    """Count the jobs, ask if somebody is there to ask, act, and print what was done."""
    verb, done = words
    asks = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    if dry_run or asks:
        counted = action(dry_run=True).wait()
        if dry_run and settings.json:
            print_json(counted)
            return Exit.OK
        if dry_run or not counted.changed:
            put(_told(counted, f"would be {done}"), err=not dry_run)
            return Exit.OK
        held_back = f", and leave {counted.skipped} alone" if counted.skipped else ""
        jobs = plural(counted.changed, "job")
        if not click.confirm(f"{verb.capitalize()} {jobs}{held_back}?", err=True):
            say("nothing was changed")
            return Exit.INTERRUPTED
    last = _follow(settings, action(dry_run=False), done)
    if not settings.json:
        put(_told(last, done))
    return Exit.OK


def _follow(settings: Settings, action: BulkAction, done: str) -> BulkProgress:
    last: BulkProgress | None = None
    if settings.json or not has_screen(sys.stderr):
        for last in action:
            if settings.json:
                print_json(last)
    else:
        with console(stderr=True).status("", spinner=_SPINNER) as status:
            for last in action:
                status.update(f"{last.changed:,} of {last.matched:,} jobs {done}")
    assert last is not None  # an action ends with a final progress or an error
    return last


def _told(progress: BulkProgress, done: str) -> str:
    if not progress.matched:
        return "no job matches"
    words = f"{plural(progress.changed, 'job')} {done}"
    if progress.skipped:
        words += (
            f"; {progress.skipped:,} could not be: they had moved on, or are held back by a"
            " unique key"
        )
    return words

"""A watched job on the screen, in a log, and as JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import datetime

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from jobwire.cli.failures import Exit, say
from jobwire.cli.output import STATE_STYLES, print_json, progress_text, short_payload
from jobwire.models import Job, JobState


def show_watch(jobs: Iterable[Job], *, as_json: bool) -> Exit:
    """Shows a job until it has ended, then its result, and returns the exit code."""
    console = Console(stderr=True)
    last: Job | None = None
    if as_json:
        for last in jobs:
            print_json(last)
    elif console.is_terminal:
        last = _show_bar(jobs, console)
    else:
        last = _show_lines(jobs)
    if last is None or last.state is not JobState.SUCCEEDED:
        if last is not None and not as_json:
            say(_why(last))
        return Exit.UNSUCCESSFUL
    if not as_json and last.raw_result.WhichOneof("kind") is not None:
        result = last.result
        if isinstance(result, bytes):
            sys.stdout.buffer.write(result)
        else:
            click.echo(short_payload(result, limit=1 << 30))
    return Exit.OK


def _show_bar(jobs: Iterable[Job], console: Console) -> Job | None:
    last: Job | None = None
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("", total=None, note="")
        for job in jobs:
            last = job
            fraction = job.progress.fraction if job.progress else None
            if job.state is JobState.SUCCEEDED:
                fraction = 1.0
            again = f"attempt {job.attempt}: " if job.attempt > 1 else ""
            message = job.progress.message if job.progress else ""
            style = STATE_STYLES.get(job.state, "")
            bar.update(
                task,
                description=f"{job.id} [{style}]{job.state}[/]",
                total=None if fraction is None else 1.0,
                completed=fraction or 0.0,
                note=escape(again + message),
            )
    return last


def _show_lines(jobs: Iterable[Job]) -> Job | None:
    last: Job | None = None
    for job in jobs:
        words = [f"{datetime.now():%H:%M:%S}", job.id, job.state.value]
        if job.attempt > 1:
            words.append(f"attempt {job.attempt}")
        if job.state is JobState.SCHEDULED and job.failure is not None:
            words.append(f"after {job.failure.type}: {job.failure.message}")
        if job.state is JobState.RUNNING:
            words.append(progress_text(job))
        click.echo(" ".join(word for word in words if word), err=True)
        last = job
    return last


def _why(job: Job) -> str:
    if job.state is JobState.FAILED and job.failure is not None:
        return f"job {job.id} failed: {job.failure.type}: {job.failure.message}"
    if job.state is JobState.CANCELLED:
        return f"job {job.id} was cancelled" + (
            f": {job.cancel_reason}" if job.cancel_reason else ""
        )
    return f"job {job.id} ended in {job.state}"

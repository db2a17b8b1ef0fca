"""The command that runs a job as if it were a local command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from jobwire._sync.client import Client
from jobwire.cli.failures import Exit, say
from jobwire.cli.group import Settings, cli, common, pass_settings
from jobwire.cli.output import failure_type, print_json
from jobwire.cli.parameters import read_payload
from jobwire.cli.submission import submission_options, submit_options
from jobwire.cli.terminal import OutputWriter, put
from jobwire.cli.views import ended_why, print_result
from jobwire.errors import CallError
from jobwire.models import Job, JobState, OutputChunk

_EXITS = {JobState.SUCCEEDED: Exit.OK, JobState.CANCELLED: Exit.INTERRUPTED}


class Detached(Exception):
    """The user leaves the job running."""


@cli.command()
@click.argument("operation")
@click.argument("payload", required=False)
@submission_options
@click.option("--result", is_flag=True, help="Print the result after the output.")
@click.option("--raw", is_flag=True, help="Let escape sequences of the output reach the terminal.")
@click.option(
    "--cancel-on-exit", is_flag=True, help="Cancel the job if this command ends before it."
)
@common
@pass_settings
def run(
    settings: Settings,
    /,
    operation: str,
    payload: str | None,
    as_bytes: bool,
    result: bool,
    raw: bool,
    cancel_on_exit: bool,
    **options: Any,
) -> int:
    """Run a job like a local command.

    PAYLOAD is JSON text, @FILE, or - for standard input. What the job writes to its channel stdout
    goes to standard output; other channels and all messages go to standard error. A terminal shows
    control characters spelt out.

    Ctrl-C asks whether to cancel the job or to leave it running. Without a terminal it leaves the
    job, or cancels it with --cancel-on-exit.

    Exit codes: 0 the job succeeded, 1 it failed or expired, 130 it was cancelled or left running.
    """
    content = read_payload(payload, as_bytes=as_bytes)
    chosen = submit_options(**options)
    with settings.client() as client:
        events = client.run(operation, content, cancel_on_disconnect=cancel_on_exit, **chosen)
        last: Job | None = None
        output = OutputWriter(raw=raw)
        try:
            with _interrupts(client, events.job_id, cancel_on_exit):
                for event in events:
                    if isinstance(event, OutputChunk):
                        output.write(event.attempt, event.channel, event.data)
                        continue
                    _tell(last, event)
                    last = event
                    if settings.json:
                        print_json(event)
        except Detached:
            say(f"the job keeps running; follow it with: jobwire watch {events.job_id}")
            return Exit.INTERRUPTED
        finally:
            output.finish()
            events.close()
    if last is None:
        return Exit.UNSUCCESSFUL
    if last.state is not JobState.SUCCEEDED:
        say(ended_why(last))
    elif result and not settings.json:
        print_result(last)
    return _EXITS.get(last.state, Exit.UNSUCCESSFUL)


def _tell(before: Job | None, job: Job) -> None:
    """Print attempts, waits and redrives, which a local command does not have."""
    if before is None:
        say(f"job {job.id}")
    elif job.state is JobState.SCHEDULED and job.failure is not None:
        why = f"{failure_type(job.failure)}: {job.failure.message}"
        say(f"attempt {job.attempt} failed, there will be another: {why}")
    elif job.attempt > before.attempt > 0:
        say(f"attempt {job.attempt} begins")


@contextmanager
def _interrupts(client: Client, job_id: str, cancel_on_exit: bool) -> Iterator[None]:
    """Make Ctrl-C ask what to do; a second one leaves the job running."""
    asked = False

    def cancel() -> None:
        try:
            client.cancel(job_id, "cancelled at the command line")
        except CallError as error:
            say(f"the job could not be cancelled: {error}")

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise Detached
        asked = True
        if not sys.stdin.isatty() or not sys.stderr.isatty():
            if not cancel_on_exit:
                raise Detached
            cancel()
            return
        put("\njobwire: [c]ancel the job, or [d]etach from it? ", err=True, nl=False)
        try:
            answer = sys.stdin.readline().strip().lower()
        except RuntimeError as error:
            raise Detached from error
        if not answer.startswith("c"):
            raise Detached
        cancel()
        say("the worker was told to stop it; Ctrl-C again leaves the job running")

    former = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)

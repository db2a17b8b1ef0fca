"""The command that follows a job."""

from __future__ import annotations

import click

from jobwire.cli.failures import Exit
from jobwire.cli.group import Settings, cli, common, pass_settings
from jobwire.cli.output import print_json
from jobwire.cli.terminal import OutputWriter
from jobwire.cli.views import output_line, show_watch
from jobwire.models import JobState


@cli.command()
@click.argument("job_id")
@click.option(
    "--output-only", is_flag=True, help="Print what the job writes out, and nothing else."
)
@click.option(
    "--raw", is_flag=True, help="With --output-only: let escape sequences reach the terminal."
)
@click.option("--from-end", is_flag=True, help="Leave out what was written before now.")
@common
@pass_settings
def watch(settings: Settings, job_id: str, output_only: bool, raw: bool, from_end: bool) -> int:
    """Follow a job to its end, then print its result.

    The result goes to standard output; progress and the job's output go to standard error.

    With --output-only the channel stdout goes to standard output and other channels go to standard
    error: unchanged into a file or a pipe, with control characters spelt out on a terminal.

    With --json, standard output gets the job at each change, and its output as objects under
    "output".
    """
    with settings.client() as client:
        # This fails at once for a wrong id or no server; a watch would wait for the server.
        client.get(job_id, full=False)
        handle = client.job(job_id)
        if not output_only:
            events = handle.watch(output=True, from_end=from_end, skip_trimmed=True)
            return show_watch(events, as_json=settings.json)
        output = OutputWriter(raw=raw)
        for chunk in handle.chunks(from_end=from_end, skip_trimmed=True):
            if settings.json:
                print_json(output_line(chunk))
            else:
                output.write(chunk.attempt, chunk.channel, chunk.data)
        output.finish()
        state = client.get(job_id, full=False).state
    return Exit.OK if state is JobState.SUCCEEDED else Exit.UNSUCCESSFUL

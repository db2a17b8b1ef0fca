"""A watched job on the screen, in a log, and as JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from datetime import datetime

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from jobwire._text import Lines
from jobwire.cli.failures import Exit, say
from jobwire.cli.output import (
    STATE_STYLES,
    failure_type,
    payload_text,
    print_json,
    progress_text,
    short_payload,
    span,
)
from jobwire.cli.terminal import console, has_screen, in_line, put, shown
from jobwire.models import AttemptOutcome, Job, JobState, OutputChunk


def show_watch(events: Iterable[Job | OutputChunk], *, as_json: bool) -> Exit:
    """Show a job until it has ended, then its result, and return the exit code."""
    last: Job | None = None
    if as_json:
        for event in events:
            if isinstance(event, Job):
                last = event
                print_json(event)
            else:
                print_json(output_line(event))
    elif has_screen(sys.stderr):
        last = _show_bar(events, console(stderr=True))
    else:
        last = _show_lines(events)
    if last is None or last.state is not JobState.SUCCEEDED:
        if last is not None and not as_json:
            say(ended_why(last))
        return Exit.UNSUCCESSFUL
    if not as_json:
        print_result(last)
    return Exit.OK


def print_result(job: Job) -> None:
    """Print what a job returned, if it returned anything."""
    if job.raw_result.WhichOneof("kind") is None:
        if (text := payload_text(job.raw_result)) is not None:
            say(text)
        return
    result = job.result
    if not isinstance(result, bytes):
        put(short_payload(result, limit=1 << 30))
    elif sys.stdout.isatty():
        put(result.decode("utf-8", "backslashreplace"))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(result)


def output_line(chunk: OutputChunk) -> dict[str, object]:
    """Turn output into an object for a JSON line."""
    content: str | bytes = chunk.data
    if chunk.kind == "text":
        content = chunk.text
    where = {"attempt": chunk.attempt, "offset": chunk.offset, "channel": chunk.channel}
    return {"output": {**where, "content": content}}


class _Words(ProgressColumn):
    """A text beside the bar, without rich's markup."""

    def __init__(self, field: str, *, whole: bool = False) -> None:
        super().__init__(Column(no_wrap=whole))
        self._field = field

    def render(self, task: Task) -> Text:
        text: Text = task.fields[self._field]
        return text


def _show_bar(events: Iterable[Job | OutputChunk], console: Console) -> Job | None:
    last: Job | None = None
    lines = Lines()
    told: set[int] = set()
    with Progress(
        # The id is there to be copied; on a narrow terminal the note is cut.
        _Words("job", whole=True),
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        _Words("note"),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("", total=None, job=Text(), note=Text())
        for event in events:
            if isinstance(event, OutputChunk):
                for line in lines.add(event):
                    bar.console.print(shown(line), soft_wrap=True)
                continue
            last = job = event
            for line in _ended_attempts(job, told):
                bar.console.print(shown(line), style="dim")
            fraction = job.progress.fraction if job.progress else None
            if job.state is JobState.SUCCEEDED:
                fraction = 1.0
            again = f"attempt {job.attempt}: " if job.attempt > 1 else ""
            message = job.progress.message if job.progress else ""
            style = STATE_STYLES.get(job.state, "")
            bar.update(
                task,
                job=Text.assemble(f"{job.id} ", (job.state.value, style)),
                total=None if fraction is None else 1.0,
                completed=fraction or 0.0,
                note=Text(in_line(again + message), no_wrap=True, overflow="ellipsis"),
            )
        for line in lines.finish():
            bar.console.print(shown(line), soft_wrap=True)
    return last


def _show_lines(events: Iterable[Job | OutputChunk]) -> Job | None:
    last: Job | None = None
    lines = Lines()
    told: set[int] = set()
    for event in events:
        if isinstance(event, OutputChunk):
            for line in lines.add(event):
                put(line, err=True)
            continue
        last = job = event
        if job.state.is_terminal:
            for line in lines.finish():
                put(line, err=True)
        for line in _ended_attempts(job, told):
            put(line, err=True)
        words = [f"{datetime.now():%H:%M:%S}", job.id, job.state.value]
        if job.attempt > 1:
            words.append(f"attempt {job.attempt}")
        if job.state is JobState.SCHEDULED and job.failure is not None:
            words.append(f"after {failure_type(job.failure)}: {job.failure.message}")
        if job.state is JobState.RUNNING:
            words.append(progress_text(job))
        put(in_line(" ".join(word for word in words if word)), err=True)
    return last


def _ended_attempts(job: Job, told: set[int]) -> Iterator[str]:
    """Yield a line for each failed attempt that is or may be followed by another."""
    for attempt in job.attempts:
        ended = attempt.ended_at is not None and attempt.outcome is not AttemptOutcome.SUCCEEDED
        if not ended or attempt.number in told:
            continue
        told.add(attempt.number)
        words = f"attempt {attempt.number} {attempt.outcome.value.lower()}"
        if attempt.started_at is not None and attempt.ended_at is not None:
            words += f" after {span(attempt.ended_at - attempt.started_at)}"
        if attempt.failure is not None:
            words += f": {failure_type(attempt.failure)}: {attempt.failure.message}"
        yield words


def ended_why(job: Job) -> str:
    """Return why a job ended without a result, in words."""
    if job.state is JobState.FAILED and job.failure is not None:
        return f"job {job.id} failed: {failure_type(job.failure)}: {job.failure.message}"
    if job.state is JobState.CANCELLED:
        return f"job {job.id} was cancelled" + (
            f": {job.cancel_reason}" if job.cancel_reason else ""
        )
    return f"job {job.id} ended in {job.state}"

"""What the demo does: submit a job per file, show them run, sum up."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from processes import DemoError, Signals, Stopped, running
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.status import Status
from rich.table import Table
from rich.text import Text

from jobwire import CallError, Client, Job, JobState, NewJob, NotFound
from jobwire.cli.terminal import console as open_console
from jobwire.cli.terminal import in_line, prepare, shown

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
QUEUE, OPERATION = "files", "file.measure"
MAX_FILES = 20_000
MAX_SHOWN = 6
SKIPPED = {"__pycache__", "node_modules", "demo-data", "build", "dist"}

prepare()
console = open_console()


def find_files(directory: Path) -> list[Path]:
    """List the files below a directory, except hidden ones, links and build products."""
    found: list[Path] = []
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in SKIPPED
        )
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                found.append(path)
                if len(found) == MAX_FILES:
                    console.print(f"more than {MAX_FILES} files: taking the first", style="yellow")
                    return found
    return found


def follow(
    client: Client, ids: set[str], before: int, older: int, bars: Progress, signals: Signals
) -> list[Job]:
    """Show the jobs run until all have ended, and return them.

    Args:
        before: How many jobs of the queue had ended before these were submitted.
        older: How many jobs of the queue go first.
        signals: Those that end it.
    """
    total = bars.add_task("[bold]all files", total=len(ids) + older)
    rows: dict[str, TaskID] = {}
    while True:
        done = ended(client) - before
        bars.update(total, completed=min(done, len(ids) + older))
        # Jobs that somebody else submitted meanwhile count as well, so the jobs themselves decide.
        if done >= len(ids) + older:
            finished = ended_jobs(client, ids)
            if len(finished) == len(ids):
                show_running(bars, rows, {})
                return finished
        now = client.list_jobs(QUEUE, states=[JobState.RUNNING], page_size=50)
        show_running(bars, rows, {job.id: job for job in now})
        signals.pause(0.05)


def show_running(bars: Progress, rows: dict[str, TaskID], now: dict[str, Job]) -> None:
    """Keep one bar for each of the first running jobs."""
    for job_id in [job_id for job_id in rows if job_id not in now]:
        bars.remove_task(rows.pop(job_id))
    for job_id, job in now.items():
        # Most files are done before they report progress; only the others are worth a line.
        if job.progress is None:
            continue
        if job_id not in rows and len(rows) < MAX_SHOWN:
            rows[job_id] = bars.add_task("", total=100)
        if job_id in rows:
            bars.update(
                rows[job_id],
                description=f"  {escape(in_line(job.progress.message[:40]))}",
                completed=round(100 * (job.progress.fraction or 0)),
            )


def ended(client: Client) -> int:
    """Return how many jobs of the queue have ended since it exists."""
    try:
        totals = client.queue(QUEUE).totals
    except NotFound:
        return 0
    return totals.succeeded + totals.failed + totals.cancelled + totals.expired


def left_over(client: Client) -> int:
    """Return how many jobs an earlier run of the demo left waiting."""
    try:
        depth = client.queue(QUEUE).counts
    except NotFound:
        return 0
    return sum(count for state, count in depth.items() if not state.is_terminal)


def ended_jobs(client: Client, ids: set[str]) -> list[Job]:
    """Return the jobs of this run that have ended, with their results."""
    states = [state for state in JobState if state.is_terminal]
    found = client.list_jobs(QUEUE, states=states, page_size=500, full=True)
    return [job for job in found if job.id in ids]


def summarize(jobs: Sequence[Job]) -> None:
    """Print the sums of all results."""
    good = [job for job in jobs if job.state is JobState.SUCCEEDED]
    results = [job.result for job in good]
    size = sum(result["bytes"] for result in results)
    compressed = sum(result["compressed_bytes"] for result in results)
    # Jobs of an earlier run may have gone first; their time does not count.
    began = min(job.started_at or job.created_at for job in jobs if job.created_at)
    finished = max(job.finished_at for job in jobs if job.finished_at)
    seconds = max((finished - began).total_seconds(), 0.001)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_row("files", f"{len(good):,}")
    table.add_row("lines", f"{sum(result['lines'] for result in results):,}")
    table.add_row("bytes", f"{size:,}")
    ratio = f"  ({size / compressed:.2f} : 1)" if compressed else ""
    table.add_row("compressed", f"{compressed:,}{ratio}")
    table.add_row("time", f"{seconds:.2f} s")
    table.add_row("jobs/s", f"{len(jobs) / seconds:,.0f}")
    console.print()
    console.print(table)
    slowest = sorted(good, key=duration_s, reverse=True)[:3]
    for job in slowest:
        path = in_line(str(job.payload["path"]))
        took = f"  {duration_s(job) * 1000:7.0f} ms  {path}"
        console.print(Text.assemble(("slowest", "dim"), took), soft_wrap=True)
    for job in [job for job in jobs if job.state is not JobState.SUCCEEDED][:10]:
        why = f"{job.failure.type}: {job.failure.message}" if job.failure else str(job.state)
        console.print(Text.assemble(("not done", "red"), f"  {in_line(why)}"), soft_wrap=True)


def duration_s(job: Job) -> float:
    """Return how long the latest attempt took."""
    if job.started_at is None or job.finished_at is None:
        return 0.0
    return (job.finished_at - job.started_at).total_seconds()


def show_what_to_try(address: str, job: Job) -> None:
    """Print commands that work in another terminal, in any directory."""
    script = Path(sys.executable).with_name("jobwire")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "jobwire.cli"]
    jobwire = f"{shlex.join(program)} --target {address}"
    payload = '{"path": ' + f'"{HERE / "demo.py"}"' + "}"
    lines = [
        f"{jobwire} queues show {QUEUE}",
        f"{jobwire} get {job.id}",
        f"{jobwire} submit {OPERATION} {shlex.quote(payload)} --queue {QUEUE} --wait",
        f"{jobwire} top",
    ]
    if shutil.which("grpcurl"):
        watch_request = shlex.quote(f'{{"job_id":"{job.id}"}}')
        call = "grpcurl -plaintext"
        lines += [
            f"{call} {address} list",
            f"{call} -d {watch_request} {address} jobwire.v1.JobService/WatchJob",
        ]
    console.print("\nThe broker and its worker are up. To try in another terminal:\n")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)


def demo(directory: Path, signals: Signals) -> None:
    """Run the whole demo."""
    files = find_files(directory)
    if not files:
        raise DemoError(f"there are no files in {directory}")
    with console.status("", spinner="line") as status:
        # Kept open beyond the first lines, so that the screen never stands still without a reason.
        up = running(Path.cwd() / "demo-data", signals, lambda text: say(status, text))
        with up as (address, info, worker), Client(address) as client:
            status.stop()
            tick(
                f"broker on {address}, store {info.store_engine} {info.store_version}"
                f" ({info.store_durability})"
            )
            tick(f"worker attached, {worker.credits or worker.concurrency} jobs at once")
            finished = measure(client, files, directory, signals)
            summarize(finished)
            if os.environ.get("JOBWIRE_DEMO_EXIT") == "1" or not sys.stdin.isatty():
                return
            show_what_to_try(address, finished[0])
            try:
                console.print("\nCtrl-C ends it.")
                while True:  # a signal right before a longer sleep would not end it
                    signals.pause(0.5)
            except Stopped as stopped:
                if stopped.number != signal.SIGINT:
                    raise
                console.print("\nending worker and broker")


def measure(client: Client, files: Sequence[Path], directory: Path, signals: Signals) -> list[Job]:
    """Have every file measured, and return the jobs as they ended."""
    older, before = left_over(client), ended(client)
    if older:
        tick(f"{older} jobs of an earlier run were waiting and go first")
    jobs = [
        NewJob(
            operation=OPERATION,
            payload={"path": str(path)},
            queue=QUEUE,
            labels={"suffix": path.suffix[1:60]} if path.suffix[1:].isalnum() else None,
        )
        for path in files
    ]
    ids = {handle.id for handle in client.submit_many(jobs)}
    tick(f"{len(ids)} jobs submitted, one per file of {directory}\n")
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    with Live(bars, console=console, refresh_per_second=15):
        return follow(client, ids, before, older, bars, signals)


def say(status: Status, text: str) -> None:
    """Say what the demo is waiting for: on a terminal beside the spinner, elsewhere as a line."""
    if console.is_terminal:
        status.update(text)
    else:
        console.print(text)


def tick(text: str) -> None:
    """Say what is done."""
    console.print(Text.assemble(("● ", "green"), shown(text)), soft_wrap=True)


def main() -> int:
    arguments = sys.argv[1:]
    if len(arguments) > 1 or (arguments and not Path(arguments[0]).is_dir()):
        console.print(f"usage: python {sys.argv[0]} [DIRECTORY]", style="red")
        return 2
    signals = Signals()
    signals.listen()
    try:
        demo(Path(arguments[0]).resolve() if arguments else ROOT, signals)
    except Stopped as stopped:
        console.print("stopped; the jobs are kept in ./demo-data")
        return 128 + stopped.number
    except (DemoError, CallError) as error:
        console.print(shown(f"error: {error}"), style="red", soft_wrap=True)
        return 1
    console.print("stopped; the jobs are kept in ./demo-data")
    return 0

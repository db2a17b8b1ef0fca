"""Real work through a real broker: every file of a directory becomes a job.

    python examples/files/demo.py [DIRECTORY]

Starts a broker on its embedded store, with its data in ./demo-data, and a worker; submits one
job per file for its checksum, line count and compressed size; shows them run; sums up. Then
broker and worker stay up until Ctrl-C. JOBWIRE_DEMO_EXIT=1, or a standard input that is no
terminal, ends the demo after the summary.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
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
from rich.table import Table

from jobwire import CallError, Client, Job, JobState, NewJob, NotFound

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
QUEUE, OPERATION = "files", "file.measure"
FIRST_PORT = 50051
MAX_FILES = 20_000
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 15.0
MAX_SHOWN = 6
SKIPPED = {"__pycache__", "node_modules", "demo-data", "build", "dist"}

console = Console(highlight=False)


class DemoError(Exception):
    """The demo can't go on; the message says why."""


@dataclass
class Process:
    """A child of the demo, with its log."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises a DemoError with the end of its log if it has ended."""
        if self.popen.poll() is not None:
            last = "".join(self.log.read_text(errors="replace").splitlines(keepends=True)[-15:])
            code = self.popen.returncode
            raise DemoError(f"the {self.name} ended with exit code {code}:\n{last}")

    def stop(self) -> None:
        """Asks it to end, and sees to it."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


def start(name: str, arguments: Sequence[str], data: Path, cwd: Path) -> Process:
    """Starts a `jobwire` command with its output in a log file."""
    log = data / f"{name}.log"
    command = [sys.executable, "-m", "jobwire.cli", *arguments]
    with log.open("wb") as output:
        # In a session of its own: Ctrl-C is for the demo, which then stops its children in order.
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            start_new_session=True,
        )
    return Process(name, popen, log)


def free_port() -> int:
    """Returns the default port if it is free, otherwise another one."""
    for port in (FIRST_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise DemoError("there is no free port on 127.0.0.1")


@contextlib.contextmanager
def running(data: Path) -> Iterator[str]:
    """A broker and a worker, for as long as the block takes; gives the broker's address."""
    data.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    store = str(data / "store")
    serve = ["serve", "--listen", address, "--http-listen", "", "--data-dir", store]
    processes = [start("broker", serve, data, Path.cwd())]
    try:
        wait_until_served(address, processes[0])
        processes.append(start("worker", ["worker", "tasks", "--target", address], data, HERE))
        yield address
    finally:
        # The worker first, so that it can still give back what it has in hand.
        for process in reversed(processes):
            process.stop()


def wait_until_served(address: str, broker: Process) -> None:
    """Waits for the broker's first answer and says what it is."""
    deadline = time.monotonic() + START_DEADLINE_S
    with Client(address, timeout_s=1) as client:
        while True:
            broker.check()
            try:
                info = client.server_info()
                break
            except CallError as error:
                if time.monotonic() > deadline:
                    raise DemoError(f"the broker does not answer: {error}") from error
    console.print(
        f"[green]●[/] broker on [bold]{address}[/], store {info.store_engine}"
        f" {info.store_version} ({info.store_durability})"
    )


def find_files(directory: Path) -> list[Path]:
    """Lists the files below a directory, but for hidden ones, links and build products."""
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
                    console.print(f"[yellow]more than {MAX_FILES} files: taking the first[/]")
                    return found
    return found


def follow(client: Client, ids: set[str], before: int, bars: Progress) -> None:
    """Shows the jobs run until all have ended.

    Args:
        before: How many jobs of the queue had ended before these were submitted.
    """
    total = bars.add_task("[bold]all files", total=len(ids))
    shown: dict[str, TaskID] = {}
    while (done := ended(client) - before) < len(ids):
        bars.update(total, completed=done)
        running = client.list(QUEUE, states=[JobState.RUNNING], page_size=50)
        show_running(bars, shown, {job.id: job for job in running if job.id in ids})
        time.sleep(0.05)
    show_running(bars, shown, {})
    bars.update(total, completed=len(ids))


def show_running(bars: Progress, shown: dict[str, TaskID], now: dict[str, Job]) -> None:
    """Keeps one bar for each of the first running jobs."""
    for job_id in [job_id for job_id in shown if job_id not in now]:
        bars.remove_task(shown.pop(job_id))
    for job_id, job in now.items():
        # Most files are done before they say anything; only the others are worth a line.
        if job.progress is None:
            continue
        if job_id not in shown and len(shown) < MAX_SHOWN:
            shown[job_id] = bars.add_task("", total=100)
        if job_id in shown:
            bars.update(
                shown[job_id],
                description=f"  {escape(job.progress.message[:40])}",
                completed=round(100 * (job.progress.fraction or 0)),
            )


def ended(client: Client) -> int:
    """How many jobs of the queue have ended since it exists."""
    try:
        totals = client.queue(QUEUE).totals
    except NotFound:
        return 0
    return totals.succeeded + totals.failed + totals.cancelled + totals.expired


def ended_jobs(client: Client, ids: set[str]) -> list[Job]:
    """The jobs of this run that have ended, with their results."""
    states = [state for state in JobState if state.is_terminal]
    found = client.list(QUEUE, states=states, page_size=500, full=True)
    return [job for job in found if job.id in ids]


def summarize(jobs: Sequence[Job]) -> None:
    """Prints the sums of all results."""
    good = [job for job in jobs if job.state is JobState.SUCCEEDED]
    results = [job.result for job in good]
    size = sum(result["bytes"] for result in results)
    compressed = sum(result["compressed_bytes"] for result in results)
    began = min(job.created_at for job in jobs if job.created_at)
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
        path = escape(str(job.payload["path"]))
        console.print(f"[dim]slowest[/]  {duration_s(job) * 1000:7.0f} ms  {path}")
    for job in [job for job in jobs if job.state is not JobState.SUCCEEDED][:10]:
        why = f"{job.failure.type}: {job.failure.message}" if job.failure else str(job.state)
        console.print(f"[red]not done[/]  {escape(why)}")


def duration_s(job: Job) -> float:
    """How long the latest attempt took."""
    if job.started_at is None or job.finished_at is None:
        return 0.0
    return (job.finished_at - job.started_at).total_seconds()


def show_what_to_try(address: str, job: Job) -> None:
    """Prints commands for another terminal."""
    payload = '{\\"path\\":\\"' + str(HERE / "demo.py") + '\\"}'
    spec = f'{{"operation":"{OPERATION}","payload":{{"json":"{payload}"}}}}'
    submit = f'{{"queue":"{QUEUE}","spec":{spec}}}'
    call = f"grpcurl -plaintext {address}"
    watch_request = shlex.quote(f'{{"job_id":"{job.id}"}}')
    service = "jobwire.v1.JobService"
    lines = [
        f"{call} list",
        f"grpcurl -plaintext -d {shlex.quote(submit)} {address} {service}/SubmitJob",
        f"grpcurl -plaintext -d {watch_request} {address} {service}/WatchJob",
        f"{call} jobwire.v1.AdminService/ListQueues",
        f"jobwire --target {address} queues show {QUEUE}",
        f"jobwire --target {address} get {job.id}",
    ]
    console.print("\nThe broker and its worker are up. To try in another terminal:\n")
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)


def demo(directory: Path) -> None:
    """Runs the whole of it."""
    files = find_files(directory)
    if not files:
        raise DemoError(f"there are no files in {directory}")
    with running(Path.cwd() / "demo-data") as address, Client(address) as client:
        jobs = [
            NewJob(
                operation=OPERATION,
                payload={"path": str(path)},
                queue=QUEUE,
                labels={"suffix": path.suffix[1:60]} if path.suffix[1:].isalnum() else None,
            )
            for path in files
        ]
        before = ended(client)
        ids = {handle.id for handle in client.submit_many(jobs)}
        console.print(f"[green]●[/] {len(ids)} jobs submitted, one per file of {directory}\n")
        bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        with Live(bars, console=console, refresh_per_second=15):
            follow(client, ids, before, bars)
        finished = ended_jobs(client, ids)
        summarize(finished)
        if os.environ.get("JOBWIRE_DEMO_EXIT") == "1" or not sys.stdin.isatty():
            return
        show_what_to_try(address, finished[0])
        console.print("\nCtrl-C ends it.")
        signal.pause()


def on_terminate(number: int, frame: FrameType | None) -> None:
    """Ends as Ctrl-C does, so that no process is left behind."""
    raise KeyboardInterrupt


def main() -> int:
    arguments = sys.argv[1:]
    if len(arguments) > 1 or (arguments and not Path(arguments[0]).is_dir()):
        console.print(f"usage: python {sys.argv[0]} [DIRECTORY]", style="red")
        return 2
    signal.signal(signal.SIGTERM, on_terminate)
    try:
        demo(Path(arguments[0]).resolve() if arguments else ROOT)
    except KeyboardInterrupt:
        console.print("\nstopped; the jobs are kept in ./demo-data")
    except (DemoError, CallError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

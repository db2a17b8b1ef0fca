"""`jobwire top`: queues and workers at a glance, live."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobwire._sync.client import Client
from jobwire.cli.group import Settings, cli, common, pass_settings
from jobwire.cli.output import (
    DEPTH_STATES,
    LIVE_STATES,
    STATE_STYLES,
    print_json,
    print_rows,
    span,
)
from jobwire.cli.parameters import duration
from jobwire.cli.terminal import console, has_screen, in_line, put
from jobwire.errors import CallError
from jobwire.models import JobState
from jobwire.operators import QueueInfo, WorkerInfo, WorkerStatus

# Rates are averaged over this many samples, so that they can be read.
SAMPLES = 5
# After this many intervals without an answer the screen says so.
PATIENCE = 2.5

_QUEUE_COLUMNS = (
    *("QUEUE", *(state.value for state in DEPTH_STATES), "OLDEST"),
    *("IN/S", "START/S", "DONE/S", "FAIL/S"),
)
_WORKER_COLUMNS = (
    *("WORKER", "STATUS", "HELD", "CREDITS", "ASSIGNED", "SUCCEEDED", "FAILED"),
    *("DONE/S", "FAIL/S", "QUEUES"),
)
_STATUS_STYLES = {
    WorkerStatus.READY: "green",
    WorkerStatus.PAUSED: "yellow",
    WorkerStatus.DRAINING: "magenta",
    WorkerStatus.LOST: "bold red",
}


@dataclass(frozen=True, slots=True)
class Rates:
    """Jobs a second; None: not known yet."""

    submitted: float | None = None
    started: float | None = None
    succeeded: float | None = None
    failed: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the broker answered at one moment."""

    at: float
    """By the monotonic clock, seconds."""
    queues: Sequence[QueueInfo]
    workers: Sequence[WorkerInfo]

    @classmethod
    def take(cls, client: Client, *, averages: bool) -> Snapshot:
        """Ask the broker.

        Args:
            client: The way to it.
            averages: Also ask for each queue's rates over the last minute; otherwise for those
                that have jobs waiting, whose age only the queue itself tells.

        Raises:
            CallError: It did not answer.
        """
        queues = [
            client.queue(queue.name) if averages or queue.counts.get(JobState.PENDING) else queue
            for queue in client.queues()
        ]
        return cls(monotonic(), queues, list(client.workers()))


class History:
    """The last few snapshots, and the rates between them."""

    def __init__(self) -> None:
        self._snapshots: list[Snapshot] = []

    def add(self, snapshot: Snapshot) -> None:
        """Take the newest one."""
        self._snapshots = [*self._snapshots[-SAMPLES:], snapshot]

    @property
    def newest(self) -> Snapshot | None:
        """None before the first."""
        return self._snapshots[-1] if self._snapshots else None

    def of_queue(self, queue: QueueInfo) -> Rates:
        """Return a queue's rates; over the last minute if there is nothing to compare with."""
        for oldest in self._older():
            for before in oldest.queues:
                if before.name == queue.name:
                    then, now, seconds = before.totals, queue.totals, self._seconds(oldest)
                    return Rates(
                        _rate(now.submitted - then.submitted, seconds),
                        _rate(now.started - then.started, seconds),
                        _rate(now.succeeded - then.succeeded, seconds),
                        _rate(now.failed - then.failed, seconds),
                    )
        rates = queue.rates
        if rates is None or not rates.window:
            return Rates()
        return Rates(rates.submitted, rates.started, rates.succeeded, rates.failed)

    def of_worker(self, worker: WorkerInfo) -> Rates:
        """Return a worker's rates."""
        for oldest in self._older():
            for before in oldest.workers:
                if before.id == worker.id and before.registered_at == worker.registered_at:
                    then, now, seconds = before.totals, worker.totals, self._seconds(oldest)
                    return Rates(
                        started=_rate(now.assigned - then.assigned, seconds),
                        succeeded=_rate(now.succeeded - then.succeeded, seconds),
                        failed=_rate(now.failed - then.failed, seconds),
                    )
        return Rates()

    def _older(self) -> Iterable[Snapshot]:
        return self._snapshots[:-1]

    def _seconds(self, oldest: Snapshot) -> float:
        return self._snapshots[-1].at - oldest.at


def _rate(count: int, seconds: float) -> float:
    # Counters that were reset, by a purge for instance, would give a negative rate.
    return max(0.0, count / seconds) if seconds > 0 else 0.0


class Poller:
    """Asks the broker at intervals from a thread of its own, so that the screen never waits."""

    def __init__(self, client: Client, interval_s: float) -> None:
        self._client = client
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._history = History()
        self._error: CallError | None = None
        self._asked_at = monotonic()
        self._thread = threading.Thread(target=self._poll, name="jobwire-top", daemon=True)

    def __enter__(self) -> Poller:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()

    def _poll(self) -> None:
        while not self._stop.is_set():
            try:
                snapshot = Snapshot.take(self._client, averages=False)
            except CallError as error:
                with self._lock:
                    self._error = error
            else:
                with self._lock:
                    self._error = None
                    self._history.add(snapshot)
            self._stop.wait(self._interval_s)

    def screen(self, console: Console, address: str) -> RenderableType:
        """Draw what is known."""
        with self._lock:
            newest, error = self._history.newest, self._error
            silent_s = monotonic() - (newest.at if newest else self._asked_at)
            # Assume the worst: there is no error while calls to a lost broker are repeated.
            away = error is not None or silent_s > PATIENCE * self._interval_s
            return draw(
                self._history,
                address=address,
                trouble=_trouble(error, silent_s, newest is None) if away else "",
                height=console.height,
            )


def _trouble(error: CallError | None, silent_s: float, never: bool) -> str:
    since = "no answer yet" if never else f"as of {span(silent_s)} ago"
    # gRPC's messages about sockets help nobody here; a server's do.
    why = f": {error.message}" if error is not None and error.reason else ""
    return f"reconnecting ({since}){why}"


def draw(history: History, *, address: str, trouble: str, height: int) -> RenderableType:
    """Draw one screen.

    Args:
        history: What to show.
        address: Where it comes from.
        trouble: Why it may be old; empty if it is not.
        height: How many lines fit.
    """
    title = Text.assemble(
        ("jobwire top", "bold"),
        f"  {in_line(address)}  {datetime.now():%H:%M:%S}  ",
        (in_line(trouble), "bold red") if trouble else ("live", "green"),
    )
    newest = history.newest
    if newest is None:
        return title
    # Two headings, two lines that count what is left out, two blank lines and the title.
    rows = max(2, height - 7)
    for_queues = min(len(newest.queues), max(rows // 2, rows - len(newest.workers)))
    busiest = sorted(newest.queues, key=_how_busy, reverse=True)
    workers = sorted(newest.workers, key=lambda worker: _worker_order(history, worker))
    return Group(
        title,
        Text(),
        _table(_QUEUE_COLUMNS, [_queue_row(history, q) for q in busiest], for_queues, "queues"),
        Text(),
        _table(
            _WORKER_COLUMNS,
            [_worker_row(history, worker) for worker in workers],
            rows - for_queues,
            "workers",
        ),
    )


def _how_busy(queue: QueueInfo) -> tuple[int, int]:
    live = sum(queue.counts.get(state, 0) for state in LIVE_STATES)
    return live, queue.totals.submitted


def _worker_order(history: History, worker: WorkerInfo) -> tuple[bool, float, str]:
    done = history.of_worker(worker).succeeded or 0.0
    return worker.status is WorkerStatus.LOST, -done, worker.id


def _queue_row(history: History, queue: QueueInfo) -> list[Any]:
    rates = history.of_queue(queue)
    return [
        f"{queue.name} (paused)" if queue.paused else queue.name,
        *(queue.counts.get(state, 0) for state in DEPTH_STATES),
        span(_whole(queue.oldest_pending_age)),
        *map(_per_second, (rates.submitted, rates.started, rates.succeeded, rates.failed)),
    ]


def _whole(age: timedelta | None) -> timedelta | None:
    """Drop the fraction of longer ages, which would only flicker."""
    return (
        age
        if age is None or age.total_seconds() < 10
        else timedelta(seconds=int(age.total_seconds()))
    )


def _worker_row(history: History, worker: WorkerInfo) -> list[Any]:
    rates = history.of_worker(worker)
    totals = worker.totals
    return [
        worker.id,
        worker.status,
        worker.held_jobs,
        # A worker that makes single calls has no credits.
        worker.credits if worker.attached else worker.concurrency or None,
        totals.assigned,
        totals.succeeded,
        totals.failed,
        _per_second(rates.succeeded),
        _per_second(rates.failed),
        " ".join(worker.queues),
    ]


def _per_second(rate: float | None) -> str | None:
    if rate is None:
        return None
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _table(columns: Sequence[str], rows: list[list[Any]], most: int, what: str) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    for index, column in enumerate(columns):
        is_name = index == 0 or column in ("STATUS", "QUEUES")
        table.add_column(
            column,
            justify="left" if is_name else "right",
            no_wrap=True,
            overflow="ellipsis",
            style=STATE_STYLES[JobState(column)] if column in JobState.__members__ else "",
        )
    for row in rows[:most]:
        table.add_row(*map(_cell, row))
    if not rows:
        return Group(table, Text(f"no {what}", style="dim"))
    if len(rows) > most:
        return Group(table, Text(f"and {len(rows) - most} more {what}", style="dim"))
    return table


def _cell(value: Any) -> Text:
    if isinstance(value, WorkerStatus):
        return Text(value.value, style=_STATUS_STYLES.get(value, ""))
    if value is None:
        return Text("-", style="dim")
    if value == 0:
        return Text("0", style="dim")
    return Text(f"{value:,}" if isinstance(value, int) else in_line(str(value)))


@cli.command()
@click.option("--once", is_flag=True, help="Print one snapshot and end, as in a pipe.")
@click.option(
    "--interval", type=duration, default="1s", show_default=True, help="How often to refresh."
)
@common
@pass_settings
def top(settings: Settings, once: bool, interval: float) -> None:
    """Show queues and workers live until Ctrl-C.

    For queues it shows depths, the age of the oldest pending job, and jobs a second; for workers
    the jobs that they hold, credits, totals, and jobs a second. It keeps running while the broker
    restarts. In a pipe, with --once or with --json it prints one snapshot, with the rates of the
    last minute.
    """
    screen = console()
    with settings.client() as client:
        if once or settings.json or not has_screen(sys.stdout):
            _print_once(Snapshot.take(client, averages=True), settings)
            return
        pause = threading.Event()
        with (
            Poller(client, max(0.1, interval)) as poller,
            Live(console=screen, screen=True, auto_refresh=False) as live,
        ):
            try:
                while True:
                    live.update(poller.screen(screen, settings.address), refresh=True)
                    pause.wait(min(0.5, interval))
            except KeyboardInterrupt:
                return


def _print_once(snapshot: Snapshot, settings: Settings) -> None:
    if settings.json:
        print_json(
            {"at": datetime.now(UTC), "queues": snapshot.queues, "workers": snapshot.workers}
        )
        return
    history = History()
    history.add(snapshot)
    queues = [_queue_row(history, queue) for queue in snapshot.queues]
    print_rows(_QUEUE_COLUMNS, queues, empty="no queues yet")
    put()
    workers = [_worker_row(history, worker) for worker in snapshot.workers]
    print_rows(_WORKER_COLUMNS, workers, empty="no workers")

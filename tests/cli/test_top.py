"""`jobwire top` and the live counters of `jobwire workers`, against a real broker."""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from jobwire import Client, QueueInfo, QueueTotals, WorkerInfo, WorkerStatus, WorkerTotals
from jobwire.cli.top import History, Snapshot, draw
from jobwire.models import JobState

from tests.cli.support import JOBWIRE, jobwire, worker
from tests.support.servers import ServerProcess
from tests.support.stores import wait_until
from tests.support.terminals import Terminal

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_top_stays_up_over_a_restart_of_the_broker_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    server = ServerProcess(data_dir=tmp_path / "data")
    server.start()
    try:
        with Client(server.address) as client:
            client.submit("nobody.takes.it", queue="waiting")
        command = [*JOBWIRE, "top", "--target", server.address, "--interval", "200ms"]
        with Terminal(command, columns=160, lines=30) as terminal:
            _until_drawn(terminal, r"live")
            _until_drawn(terminal, r"waiting +1 ")
            server.kill()
            _until_drawn(terminal, r"reconnecting")
            server.start()
            _until_drawn(terminal, r"live")
            _until_drawn(terminal, r"waiting +1 ")
            terminal.type("\x03")
            assert terminal.wait() == 0
    finally:
        server.stop()


def _until_drawn(terminal: Terminal, words: str) -> None:
    """Wait until some words are drawn after all that was read before."""
    terminal.seen = b""
    terminal.read_until(words)


def test_in_a_pipe_top_prints_queues_and_workers_once(busy_target: str) -> None:
    with Client(busy_target) as client:
        client.submit("echo", [1, 2]).result(timeout=60)
        _until_counted(client)
    done = jobwire("top", target=busy_target)
    assert done.returncode == 0
    queues, workers = done.stdout.split("\n\n")
    assert queues.splitlines()[0].startswith("QUEUE\tPENDING\t")
    assert "default\t" in queues
    heading, *rows = [line.split("\t") for line in workers.strip().splitlines()]
    (row,) = [dict(zip(heading, row, strict=True)) for row in rows]
    assert (row["STATUS"], int(row["CREDITS"]) > 0, int(row["SUCCEEDED"]) > 0) == (
        "READY",
        True,
        True,
    )


def test_as_json_top_prints_one_object(busy_target: str) -> None:
    with Client(busy_target) as client:
        wait_until(lambda: any(w.attached for w in client.workers()), "the worker is there")
    done = jobwire("top", "--json", target=busy_target)
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert {"at", "queues", "workers"} == found.keys()
    assert found["workers"][0]["attached"] is True
    assert found["workers"][0]["totals"].keys() == {"assigned", "succeeded", "failed"}


def test_workers_are_listed_with_their_live_counters(busy_target: str) -> None:
    with Client(busy_target) as client:
        client.submit("echo", [1, 2]).result(timeout=60)
        found = _until_counted(client)
    heading, row = [
        line.split("\t") for line in jobwire("workers", target=busy_target).stdout.splitlines()
    ]
    shown = dict(zip(heading, row, strict=True))
    assert (shown["WORKER"], shown["ATTACHED"]) == (found.id, "yes")
    assert int(shown["ASSIGNED"]) >= int(shown["SUCCEEDED"]) >= 1
    described = jobwire("workers", "show", found.id, target=busy_target).stdout
    assert re.search(rf"attached +to {re.escape(found.server_id)}\n", described)
    assert re.search(r"totals +\d+ assigned, \d+ succeeded, 0 failed", described)


def test_a_worker_is_let_go_by_command(target: str) -> None:
    with worker(target, "tests.cli.handlers", ROOT) as process, Client(target) as client:
        worker_id = _id_of(process, client)
        done = jobwire("workers", "drain", worker_id, target=target)
        assert (done.returncode, process.wait(60)) == (0, 0)
        assert f"{worker_id} is draining" in done.stdout
        assert worker_id not in [found.id for found in client.workers()]


def _id_of(process: subprocess.Popen[bytes], client: Client) -> str:
    """Wait for a worker's registration."""
    deadline = time.monotonic() + 60
    while True:
        for found in client.workers():
            if f"-{process.pid}-" in found.id:
                return found.id
        assert time.monotonic() < deadline


def _until_counted(client: Client) -> WorkerInfo:
    """Wait until the broker's counters of the one worker tell of a success."""
    deadline = time.monotonic() + 60
    while True:
        (found,) = client.workers()
        if found.totals.succeeded:
            return found
        assert time.monotonic() < deadline, found


def a_queue(name: str = "q", *, pending: int = 0, succeeded: int = 0) -> QueueInfo:
    totals = QueueTotals(succeeded, succeeded, succeeded, 0, 0, 0, 0, 0, 0)
    age = timedelta(seconds=61.5) if pending else None
    depth = {JobState.PENDING: pending, JobState.SUCCEEDED: succeeded}
    return QueueInfo(name, False, depth, age, None, totals)


def a_worker(name: str = "w", *, succeeded: int = 0) -> WorkerInfo:
    totals = WorkerTotals(assigned=succeeded, succeeded=succeeded)
    return WorkerInfo(
        *(name, WorkerStatus.READY, ("q",), ("x",), {}, 4, "test", 3, None, None, ()),
        attached=True,
        server_id="s",
        credits=7,
        totals=totals,
    )


def drawn(history: History, *, height: int = 40, trouble: str = "") -> str:
    console = Console(width=160, height=height, force_terminal=False)
    with console.capture() as capture:
        console.print(draw(history, address="here", trouble=trouble, height=height))
    return capture.get()


def test_rates_are_taken_between_looks() -> None:
    history = History()
    history.add(Snapshot(100.0, [a_queue(succeeded=10)], [a_worker(succeeded=0)]))
    queue, worker = a_queue(succeeded=310, pending=5), a_worker(succeeded=150)
    history.add(Snapshot(102.0, [queue], [worker]))
    assert history.of_queue(queue).succeeded == 150.0
    assert history.of_worker(worker).succeeded == 75.0
    text = drawn(history)
    assert re.search(r"q +5 +0 +0 +0 +310 +0 +1m1s +150 +150 +150 +0\.0", text)
    assert re.search(r"w +READY +3 +7 +150 +150 +0 +75\.0 +0\.0 +q", text)


def test_a_counter_that_began_anew_gives_no_negative_rate() -> None:
    history = History()
    history.add(Snapshot(1.0, [a_queue(succeeded=10)], []))
    queue = a_queue(succeeded=2)
    history.add(Snapshot(2.0, [queue], []))
    assert history.of_queue(queue).succeeded == 0.0


def test_a_worker_that_registered_again_starts_its_rates_anew() -> None:
    history = History()
    history.add(Snapshot(1.0, [], [a_worker(succeeded=10)]))
    again = datetime(2026, 1, 1, tzinfo=UTC)
    worker = replace(a_worker(succeeded=500), registered_at=again)
    history.add(Snapshot(2.0, [], [worker]))
    assert history.of_worker(worker).succeeded is None


def test_what_does_not_fit_the_screen_is_counted_and_the_busiest_stay() -> None:
    history = History()
    queues = [a_queue(f"q{n:03}", pending=n) for n in range(100)]
    workers = [a_worker(f"w{n:03}") for n in range(100)]
    history.add(Snapshot(1.0, queues, workers))
    text = drawn(history, height=27)
    assert len(text.splitlines()) <= 27
    assert "q099" in text
    assert "q000" not in text
    assert "and 90 more queues" in text
    assert "and 90 more workers" in text


def test_old_news_says_so() -> None:
    history = History()
    history.add(Snapshot(1.0, [a_queue()], []))
    assert "reconnecting (as of 5.0s ago)" in drawn(
        history, trouble="reconnecting (as of 5.0s ago)"
    )
    assert "live" in drawn(history)

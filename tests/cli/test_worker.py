"""`jobwire worker` as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobwire import Client, WorkerInfo

from tests.cli.support import JOBWIRE

ROOT = Path(__file__).parents[2]


@contextmanager
def worker(
    target: str, *options: str, module: str = "tests.cli.handlers"
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*JOBWIRE, "worker", module, "--target", target, *options],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def registered(client: Client, worker_id: str) -> WorkerInfo:
    """Wait for a worker that is heard of."""
    deadline = time.monotonic() + 60
    while True:
        for found in client.workers():
            if found.id == worker_id:
                return found
        assert time.monotonic() < deadline


def test_a_worker_holds_a_stream_unless_told_otherwise(target: str) -> None:
    with Client(target) as client, worker(target, "--id", "one"):
        assert registered(client, "one").attached
        with worker(target, "--id", "two", "--transport", "unary"):
            assert not registered(client, "two").attached


def test_a_second_worker_of_the_same_id_ends_the_first_with_an_error(target: str) -> None:
    with Client(target) as client, worker(target, "--id", "same") as first:
        registered(client, "same")
        with worker(target, "--id", "same") as second:
            _, said = first.communicate(timeout=60)
            assert first.returncode == 5
            assert "SUPERSEDED" in said
            assert registered(client, "same").attached
            second.send_signal(signal.SIGTERM)
            second.communicate(timeout=60)
            assert second.returncode == 0
        assert "same" not in [found.id for found in client.workers()]


def test_processes_of_handlers_are_renewed_as_the_options_say(target: str) -> None:
    options = ("--queue", "renewal", "--process-max-jobs", "2", "--process-max-memory", "4GiB")
    with Client(target) as client, worker(target, *options, module="tests.cli.process_handlers"):
        pids = [client.submit("own_pid", queue="renewal").result() for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]

"""The Go example against a real broker; only where Go is installed and JOBWIRE_TEST_GO=1."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobwire import Client

from tests.support.servers import ServerProcess

EXAMPLE = Path(__file__).parents[2] / "examples" / "go"

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("JOBWIRE_TEST_GO") != "1" or shutil.which("go") is None,
        reason="needs Go, and downloads modules: JOBWIRE_TEST_GO=1",
    ),
    pytest.mark.processes,
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two programs."""
    folder = tmp_path_factory.mktemp("go")
    for name in ("worker", "submit"):
        subprocess.run(
            ["go", "build", "-o", str(folder / name), f"./cmd/{name}"], cwd=EXAMPLE, check=True
        )
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    made = ServerProcess("--max-stream-age", "1s", data_dir=tmp_path / "data")
    made.start()
    yield made
    made.stop()


@contextmanager
def worker(programs: Path, target: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([str(programs / "worker"), "-target", target])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def attached(client: Client) -> None:
    """Wait for the one worker."""
    deadline = time.monotonic() + 30
    while not any(worker.attached for worker in client.workers()):
        assert time.monotonic() < deadline


def test_the_programs_do_a_job_and_leave(programs: Path, server: ServerProcess) -> None:
    with worker(programs, server.address) as process, Client(server.address) as client:
        done = subprocess.run(
            [str(programs / "submit"), "-target", server.address, "hello", '{"name": "Ada"}'],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout == '"Hello, Ada! This is attempt 1, in Go."\n'
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert list(client.workers()) == []


def test_jobs_outlive_moves_and_a_killed_server(programs: Path, server: ServerProcess) -> None:
    with worker(programs, server.address), Client(server.address, timeout_s=30) as client:
        attached(client)
        jobs = [client.submit("sum", list(range(30))) for _ in range(50)]
        for seen in jobs[-1].watch(timeout=60):
            if seen.progress is not None:
                break
        server.kill()
        server.start()
        for job in jobs:
            assert job.result(timeout=60) == 435
        assert {client.get(job.id).attempt for job in jobs} == {1}


def test_a_cancellation_reaches_the_handler(programs: Path, server: ServerProcess) -> None:
    with worker(programs, server.address), Client(server.address) as client:
        job = client.submit("sum", [1] * 10_000)
        for seen in job.watch(timeout=60):
            if seen.progress is not None:
                break
        job.cancel("enough")
        assert job.wait(timeout=30).state.value == "CANCELLED"

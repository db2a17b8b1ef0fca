"""A server serves and ends in order whatever its standard streams are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobwire import Client

from tests.support.stores import free_port, wait_until


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False


@pytest.fixture
def broken_pipe() -> Iterator[int]:
    """Nobody reads at its other end."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


# What the shell makes of the streams before it becomes the server.
STREAMS = {
    "all closed": "<&- >&- 2>&-",
    "stdin closed": "<&-",
    "stderr closed": "2>&-",
    "a full disk": ">/dev/full 2>&1",
    "a broken pipe": "",
}


@pytest.mark.parametrize(
    ("streams", "processes"), [*((name, "1") for name in STREAMS), ("all closed", "2")]
)
def test_a_server_serves_with(
    streams: str, processes: str, tmp_path: Path, broken_pipe: int
) -> None:
    http, grpc = free_port(), free_port()
    command = [
        *(sys.executable, "-m", "jobwire_server", "--listen", f"127.0.0.1:{grpc}"),
        *("--http-listen", f"127.0.0.1:{http}", "--data-dir", str(tmp_path / "data")),
        *("--log-requests", "all", "--processes", processes),
    ]
    output = broken_pipe if streams == "a broken pipe" else subprocess.DEVNULL
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {STREAMS[streams]}', "sh", *command],
        cwd=tmp_path,
        stdout=output,
        stderr=output,
    )
    try:
        wait_until(lambda: process.poll() is not None or _ready(http), "it serves", timeout_s=60)
        assert process.poll() is None
        with Client(f"127.0.0.1:{grpc}") as client:
            jobs = [client.submit("nobody").id for _ in range(20)]
            assert len(set(jobs)) == 20
        process.send_signal(signal.SIGHUP)
        # Whatever was opened under the numbers of the streams, no log went into it.
        for path in (tmp_path / "data").iterdir():
            assert (
                path.is_dir() or path.name == "valkey.log" or b"SubmitJob" not in path.read_bytes()
            )
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
    assert status == 0


@pytest.mark.parametrize("streams", ["all closed", "a full disk"])
def test_a_refusal_has_its_exit_code_though_nobody_can_be_told(
    streams: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            *("sh", "-c", f'exec "$@" {STREAMS[streams]}', "sh"),
            *(sys.executable, "-m", "jobwire_server", "--lease", "nonsense"),
        ],
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2


def test_an_encoding_without_a_letter_of_the_data_directory_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "ä").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "jobwire_server", "--data-dir", str(tmp_path / "ä" / "data")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 3
    assert b"/\\xe4/data can't be used: Not a directory" in done.stderr
    assert b"Traceback" not in done.stderr

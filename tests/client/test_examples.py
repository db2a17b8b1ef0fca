"""The examples as a newcomer runs them, with a real broker."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobwire import Client, JobState

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, str(ROOT / "examples" / "files" / "demo.py")]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A directory of a few files, one of them larger than a chunk."""
    folder = tmp_path / "inputs"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("one\ntwo\n")
    (folder / "deep" / "b.bin").write_bytes(bytes(1 << 20))
    (folder / ".hidden").write_text("not looked at")
    return folder


def test_the_demo_ends_by_itself_without_a_terminal(tmp_path: Path, inputs: Path) -> None:
    done = subprocess.run(
        [*DEMO, str(inputs)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"files +2\b", done.stdout)
    assert re.search(r"lines +2\b", done.stdout)
    assert re.search(rf"bytes +{8 + (1 << 20):,}", done.stdout)
    assert _processes_of(tmp_path) == []


def test_the_demo_stays_up_at_a_terminal_until_ctrl_c(tmp_path: Path, inputs: Path) -> None:
    environment = os.environ | {"COLUMNS": "120", "TERM": "xterm"}
    environment.pop("JOBWIRE_DEMO_EXIT", None)
    terminal, inner = os.openpty()
    demo = subprocess.Popen(
        [*DEMO, str(inputs)], cwd=tmp_path, env=environment, stdin=inner, stdout=inner, stderr=inner
    )
    os.close(inner)
    text = _read_until(terminal, "Ctrl-C ends it.")
    address = re.search(r"grpcurl -plaintext (127\.0\.0\.1:\d+) list", text)
    assert address, text
    with Client(address[1]) as client:
        found = list(client.list("files"))
        assert [job.state for job in found] == [JobState.SUCCEEDED] * 2
        again = client.submit("file.measure", {"path": str(inputs / "a.txt")}, queue="files")
        assert again.result(timeout=20)["lines"] == 2
    demo.send_signal(signal.SIGINT)
    _read_until(terminal, "the jobs are kept")
    assert demo.wait(20) == 0
    os.close(terminal)
    assert _processes_of(tmp_path) == []


def test_hello_answers_through_a_worker_in_the_directory(broker_address: str) -> None:
    hello = ROOT / "examples" / "hello"
    environment = os.environ | {"JOBWIRE_TARGET": broker_address}
    worker = subprocess.Popen(
        [sys.executable, "-m", "jobwire.cli", "worker", "worker"], cwd=hello, env=environment
    )
    try:
        done = subprocess.run(
            [sys.executable, "submit.py", "Ada"],
            cwd=hello,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    finally:
        worker.terminate()
        assert worker.wait(20) == 0
    assert done.stdout.splitlines()[1] == "Hello, Ada! This is attempt 1."


def test_the_demo_says_what_is_wrong_with_a_directory(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DEMO, str(tmp_path / "none")], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "usage:" in done.stdout


def _read_until(terminal: int, words: str, timeout_s: float = 60) -> str:
    text, deadline = "", time.monotonic() + timeout_s
    while words not in text:
        left = deadline - time.monotonic()
        ready, _, _ = select.select([terminal], [], [], max(0.0, left))
        assert ready, f"{words!r} did not come in time after: {text}"
        text += os.read(terminal, 65536).decode(errors="replace")
    return text


def _processes_of(folder: Path) -> list[str]:
    """The command lines of processes that name a folder; ends them, so that none is left."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if str(folder) in line and int(entry.name) != os.getpid():
                found.append(line)
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue
    return found

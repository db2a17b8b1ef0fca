"""The examples as a newcomer runs them, with a real broker."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobwire import Client, JobState

from tests.support.stores import wait_until
from tests.support.terminals import Terminal

pytestmark = pytest.mark.processes

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


LOST = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from processes import Signals, Stopped
signals = Signals()
signals.listen()
class Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        print("in a destructor")
Dying()
try:
    signals.pause(0)
except Stopped as stopped:
    print("stopped by", stopped.number)
"""


def test_a_signal_whose_exception_is_lost_ends_the_demo_all_the_same() -> None:
    folder = str(ROOT / "examples" / "files")
    done = subprocess.run(
        [sys.executable, "-c", LOST, folder], capture_output=True, text=True, timeout=60
    )
    assert "Exception ignored in" in done.stderr
    assert done.stdout == f"stopped by {signal.SIGTERM:d}\n"


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


def _demo(tmp_path: Path, inputs: Path) -> Terminal:
    return Terminal([*DEMO, str(inputs)], cwd=tmp_path, environment={"JOBWIRE_DEMO_EXIT": None})


def _many(inputs: Path) -> Path:
    """Add so many files that they take a while."""
    for number in range(100):
        (inputs / f"{number}.txt").write_text("line\n" * 1000)
    return inputs


def test_the_demo_stays_up_at_a_terminal_and_suggests_what_works_anywhere(
    tmp_path: Path, inputs: Path
) -> None:
    with _demo(tmp_path, inputs) as terminal:
        terminal.read_until(r"Ctrl-C ends it\.")
        address = re.search(r"broker on (127\.0\.0\.1:\d+)", terminal.text)
        assert address, terminal.text
        with Client(address[1]) as client:
            found = list(client.list_jobs("files"))
            assert [job.state for job in found] == [JobState.SUCCEEDED] * 2
        suggested = re.findall(rf"^  (.*{address[1]}.*)$", terminal.text, re.MULTILINE)
        assert len(suggested) >= 4
        for line in suggested:
            # As in a terminal that was just opened: no virtual environment, another directory.
            done = subprocess.run(
                ["bash", "-c", line],
                cwd="/",
                env={"PATH": os.environ["PATH"].replace(str(ROOT), "/nowhere"), "HOME": "/"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, (line, done.stderr)
        terminal.type("\x03")
        assert terminal.wait() == 0
        assert "the jobs are kept" in terminal.text
    assert _processes_of(tmp_path, terminal) == []


def test_the_demo_interrupted_with_jobs_waiting_goes_on_the_next_time(
    tmp_path: Path, inputs: Path
) -> None:
    files = list(_many(inputs).glob("[0-9]*.txt"))

    def all_files(size: int) -> None:
        for file in files:
            os.truncate(file, size)

    # No job on one of them ends before it is short again.
    all_files(1 << 40)
    with _demo(tmp_path, inputs) as terminal:
        terminal.read_until("jobs submitted")
        terminal.type("\x03")
        log = tmp_path / "demo-data" / "worker.log"
        wait_until(lambda: "told to stop" in log.read_text(), "the worker is told", timeout_s=60)
        all_files(0)
        assert terminal.wait() == 130, terminal.text
    assert "Traceback" not in terminal.text
    assert _processes_of(tmp_path, terminal) == []
    all_files(1 << 40)
    with _demo(tmp_path, inputs) as terminal:
        terminal.read_until(r"\d+ jobs of an earlier run were waiting")
        all_files(0)
        terminal.read_until(r"files +102\b")
        terminal.read_until(r"Ctrl-C ends it\.")
        terminal.type("\x03")
        assert terminal.wait() == 0
    assert _processes_of(tmp_path, terminal) == []


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("a job for every file", signal.SIGINT),
        ("starting a broker", signal.SIGTERM),
        ("waiting for the worker", signal.SIGINT),
        ("jobs submitted", signal.SIGTERM),
    ],
)
def test_a_signal_at_any_moment_ends_the_demo_and_all_it_started(
    tmp_path: Path, inputs: Path, moment: str, number: signal.Signals
) -> None:
    with _demo(tmp_path, _many(inputs)) as terminal:
        terminal.read_until(moment)
        terminal.process.send_signal(number)
        assert terminal.wait() == 128 + number, terminal.text
    assert "Traceback" not in terminal.text
    assert _processes_of(tmp_path, terminal) == []


def test_the_next_demo_ends_what_a_killed_one_left_behind_and_all_when_its_terminal_is_closed(
    tmp_path: Path, inputs: Path
) -> None:
    with _demo(tmp_path, inputs) as terminal:
        terminal.read_until(r"Ctrl-C ends it\.")
        with _demo(tmp_path, inputs) as second:
            assert second.wait() == 1
            assert "another demo" in second.text
        terminal.process.kill()
        terminal.process.wait()
    with _demo(tmp_path, inputs) as terminal:
        terminal.read_until("ending what a former demo left behind")
        terminal.read_until(r"Ctrl-C ends it\.")
        terminal.hang_up()
        assert terminal.process.wait(60) == 128 + signal.SIGHUP
    assert _processes_of(tmp_path, terminal) == []


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


def _processes_of(folder: Path, *demos: Terminal) -> list[str]:
    """The command lines of a demo's broker and worker; ends them, so that none is left."""
    words = [str(folder), *(f"demo-{demo.process.pid}-" for demo in demos)]
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if any(word in line for word in words) and int(entry.name) != os.getpid():
                found.append(line)
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue
    return found

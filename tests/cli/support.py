"""The command `jobwire` as a process, and a real broker for it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jobwire import CallError, Client, Tls

from tests.support import warm
from tests.support.stores import free_port

JOBWIRE = [sys.executable, "-m", "jobwire.cli"]
ROOT = Path(__file__).parents[2]
# Of what takes a second or two where nothing else runs.
START_DEADLINE_S = END_DEADLINE_S = 60.0


def jobwire(
    *arguments: str,
    target: str = "",
    stdin: bytes | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    done = warm.run(
        "jobwire.cli",
        arguments,
        stdin=stdin if stdin is not None else b"",
        timeout_s=timeout_s,
        env=os.environ | ({"JOBWIRE_TARGET": target} if target else {}) | dict(environment or {}),
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


class Running:
    """A command beside the test, which reads what it writes.

    Args:
        process: Of the command.
        stdout: The other end of its standard output.
        stderr: The other end of its standard error.
    """

    def __init__(self, process: warm.Process, stdout: IO[str], stderr: IO[str]) -> None:
        self._process = process
        self.stdout = stdout
        self.stderr = stderr
        self.send_signal = process.send_signal
        self.terminate = process.terminate

    @property
    def returncode(self) -> int | None:
        """The exit code, once it was waited for."""
        return self._process.returncode

    def wait(self, timeout_s: float) -> int:
        """Wait for its end and return the exit code."""
        return self._process.wait(timeout_s)

    def rest(self, timeout_s: float = 60) -> tuple[str, str]:
        """Wait for its end; return what it wrote on the two streams and nobody has read yet."""
        with ThreadPoolExecutor(1) as pool:
            out = pool.submit(self.stdout.read)
            said = self.stderr.read()
            self.wait(timeout_s)
            return out.result(), said


@contextmanager
def running(*arguments: str, target: str) -> Iterator[Running]:
    """Run a command beside the test; end it in any case."""
    (out, its_out), (err, its_err) = os.pipe(), os.pipe()
    with open(out) as stdout, open(err) as stderr:
        try:
            process = warm.start(
                "jobwire.cli",
                arguments,
                output=its_out,
                errors=its_err,
                cwd=ROOT,
                env=os.environ | {"JOBWIRE_TARGET": target},
            )
        finally:
            os.close(its_out)
            os.close(its_err)
        try:
            yield Running(process, stdout, stderr)
        finally:
            process.kill()
            process.wait()


def read_until(stream: IO[str], words: str) -> None:
    """Read lines up to the first that holds some words."""
    read = []
    for line in stream:
        if words in line:
            return
        read.append(line)
    raise AssertionError(f"{words!r} is not in {''.join(read)!r}")


def _end(process: warm.Process) -> None:
    process.terminate()
    try:
        process.wait(END_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


@contextmanager
def broker(*options: str, tls: bool | Tls = False) -> Iterator[str]:
    """A broker on its embedded store; gives its address."""
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="jobwire-", dir="/tmp") as folder:
        log = Path(folder) / "broker.log"
        serve = ["serve", "--listen", address, "--http-listen", "", "--data-dir", folder]
        with log.open("wb") as output:
            process = warm.start("jobwire.cli", [*serve, *options], output=output.fileno())
        try:
            _wait_until_served(address, process, log, tls)
            yield address
        finally:
            _end(process)


def _wait_until_served(address: str, process: warm.Process, log: Path, tls: bool | Tls) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    with Client(address, timeout_s=1, tls=tls) as client:
        while True:
            assert process.poll() is None, log.read_text()
            try:
                client.server_info()
                return
            except CallError:
                assert time.monotonic() < deadline, log.read_text()


@contextmanager
def worker(target: str, module: str, cwd: Path) -> Iterator[warm.Process]:
    """A worker of `MODULE:NAME`, found below a directory."""
    with open(os.devnull, "wb") as nowhere:
        process = warm.start(
            "jobwire.cli",
            ["worker", module, "--target", target],
            output=nowhere.fileno(),
            cwd=cwd,
        )
    try:
        yield process
    finally:
        _end(process)

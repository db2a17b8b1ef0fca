"""The command `jobwire` as a process, and a real broker for it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from jobwire import CallError, Client, Tls

from tests.support.stores import free_port

JOBWIRE = [sys.executable, "-m", "jobwire.cli"]
START_DEADLINE_S = 30.0


def jobwire(
    *arguments: str,
    target: str = "",
    stdin: bytes | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    done = subprocess.run(
        [*JOBWIRE, *arguments],
        input=stdin if stdin is not None else b"",
        capture_output=True,
        timeout=timeout_s,
        check=False,
        env=os.environ | ({"JOBWIRE_TARGET": target} if target else {}) | dict(environment or {}),
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@contextmanager
def broker(*options: str, tls: bool | Tls = False) -> Iterator[str]:
    """A broker on its embedded store; gives its address."""
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="jobwire-", dir="/tmp") as folder:
        log = Path(folder) / "broker.log"
        serve = [*JOBWIRE, "serve", "--listen", address]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*serve, "--http-listen", "", "--data-dir", folder, *options],
                stdout=output,
                stderr=output,
            )
        try:
            _wait_until_served(address, process, log, tls)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_served(
    address: str, process: subprocess.Popen[bytes], log: Path, tls: bool | Tls
) -> None:
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
def worker(target: str, module: str, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of `MODULE:NAME`, found below a directory."""
    process = subprocess.Popen(
        [*JOBWIRE, "worker", module, "--target", target], cwd=cwd, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)

"""`jobwire worker` as a real process."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.warm import Process, start

ROOT = Path(__file__).parents[2]


class WorkerProcess:
    """A worker in a process of its own.

    Args:
        target: Where the brokers are, separated by commas.
        worker: MODULE:NAME.
        flags: Of `jobwire worker`.
    """

    def __init__(self, target: str, worker: str, *flags: str) -> None:
        self.target = target
        self.worker = worker
        self.flags = flags
        self._log = Path(tempfile.mkdtemp(prefix="jwt-")) / "log"
        self._process: Process | None = None

    @property
    def log(self) -> str:
        """All that it has written."""
        return self._log.read_text() if self._log.exists() else ""

    def start(self) -> None:
        """Starts it; it attaches by itself."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("JOBWIRE_")}
        with self._log.open("ab") as log:
            self._process = start(
                "jobwire.cli",
                ["worker", self.worker, *self.flags, "--target", self.target],
                output=log.fileno(),
                cwd=ROOT,
                env=inherited,
            )

    def kill(self) -> None:
        """kill -9, and waits for the end."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM, and waits for the end; the exit code, 0 if it never ran."""
        if self._process is None:
            return 0
        self._process.terminate()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def wait(self, timeout_s: float = 60.0) -> int:
        """Waits until it ends by itself; the exit code."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def remove(self) -> None:
        """Stops it and deletes its log."""
        self.stop()
        shutil.rmtree(self._log.parent, ignore_errors=True)

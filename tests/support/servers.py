"""`jobwire serve` as a real process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import suppress
from pathlib import Path

from tests.support.stores import wait_until
from tests.support.warm import Process, start

START_DEADLINE_S = 60.0
"""For a start and for an end, on a machine that starts a dozen others meanwhile."""


class ServerProcess:
    """A broker in a process of its own, on free ports.

    Args:
        flags: Of `jobwire serve`, for example ``("--redis-url", url)``. Without a store or data
            directory among them it uses the bundled Valkey on `data_dir`.
        data_dir: Where the bundled Valkey keeps its data.
        env: Further environment variables.
        module: What Python is to run, with arguments that come before the flags.
        wrapper: What comes before the whole command.
        cold: Start Python anew, for tests of what happens before all is imported.
    """

    def __init__(
        self,
        *flags: str,
        data_dir: Path | None = None,
        env: dict[str, str] | None = None,
        module: tuple[str, ...] = ("jobwire_server",),
        wrapper: tuple[str, ...] = (),
        cold: bool = False,
    ) -> None:
        self.flags = flags
        self.data_dir = data_dir
        self.env = env or {}
        self.module = module
        self.wrapper = wrapper
        self._cold = cold or bool(wrapper)
        self.address = ""
        """HOST:PORT of gRPC; the same again after a restart."""
        self.http = ""
        """HOST:PORT of /metrics; the same again after a restart."""
        self._directory = Path(tempfile.mkdtemp(prefix="jwt-"))
        self._directory.chmod(0o755)  # whichever user the wrapper makes of it
        self.process: Process | None = None

    @property
    def log_file(self) -> Path:
        """Where it writes; begun anew at each start."""
        return self._directory / "log"

    @property
    def log(self) -> str:
        """All that it has written so far."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        flags = ["--listen", self.address or "127.0.0.1:0", "--log-format", "console"]
        flags += ["--http-listen", self.http or "127.0.0.1:0"]
        if self.data_dir is not None:
            flags += ["--data-dir", str(self.data_dir)]
        self.log_file.unlink(missing_ok=True)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("JOBWIRE_")}
        env = {**inherited, **self.env, "PYTHONUNBUFFERED": "1"}
        flags += self.flags
        with self.log_file.open("wb") as log:
            if self._cold:
                self.process = subprocess.Popen(
                    [*self.wrapper, sys.executable, "-m", *self.module, *flags],
                    stdout=log,
                    stderr=log,
                    cwd=self._directory,
                    env=env,
                )
            else:
                module, *arguments = self.module
                self.process = start(
                    module, [*arguments, *flags], output=log.fileno(), cwd=self._directory, env=env
                )

    def start(self) -> None:
        """Start it and wait until it serves."""
        self.spawn()
        self.wait_until_serving()

    def wait_until_serving(self) -> None:
        """Wait until a process that was spawned serves."""
        wait_until(self._serves, "the server serves", timeout_s=START_DEADLINE_S)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout_s: float = START_DEADLINE_S) -> int:
        """Wait for its end; its exit code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """SIGTERM, and wait for the end; the exit code, 0 if it did not run.

        Also ends a bundled Valkey that a kill -9 left behind.
        """
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            self._end_orphan()

    def kill(self) -> None:
        """kill -9, and wait for the end. Its bundled Valkey, if any, goes on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def metric(self, sample: str) -> float:
        """Return a value that it shows, 0 if it shows none of that name and those labels."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found = re.search(rf"^{re.escape(sample)} (\S+)", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def _end_orphan(self) -> None:
        pid_file = self.data_dir and self.data_dir / "valkey.pid"
        if pid_file and pid_file.exists():  # a clean end removes it
            with suppress(ProcessLookupError):
                os.kill(int(pid_file.read_text()), signal.SIGTERM)

    def _serves(self) -> bool:
        assert self.process is not None
        text = self.log
        if self.process.poll() is not None:
            raise RuntimeError(f"the server ended with {self.process.returncode}: {text}")
        found = re.search(r"^  gRPC   (\S+)", text, re.MULTILINE)
        http = re.search(r"^  HTTP   http://([^/]+)/", text, re.MULTILINE)
        if found is None or "\n  try " not in text:
            return False
        self.address, self.http = found[1], http[1] if http else ""
        return True

"""A process that is killed, stopped and started again, and whose end by itself is noted."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.faults.history import Journal

ROOT = Path(__file__).parents[2]
RESTART_S = 0.5
"""As a service manager does, what ended by itself is started again after this."""
END_S = 45.0
AT_WORK_S = 0.7


class Managed:
    """One participant's process, over all its starts.

    Args:
        name: The participant.
        command: Gives the command line of each start.
        journal: Takes kills, ends and starts.
        log: All that it writes, over all starts.
        env: Variables beside those inherited.
        may_end: Exit codes with which it may end by itself.
        is_up: Tells of the process with an id whether it is of use yet.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        journal: Journal,
        log: Path,
        env: dict[str, str] | None = None,
        may_end: tuple[int, ...] = (),
        is_up: Callable[[int], bool] = lambda pid: True,
    ) -> None:
        self.name = name
        self.command = command
        self.journal = journal
        self.log = log
        self.env = env or {}
        self.may_end = may_end
        self._is_up = is_up
        self._up_pid = 0
        self._up_since = 0.0
        self.wanted = False
        self.stopped = False
        self.starts_at = 0.0
        self._ending = ""
        self._ends_by = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process; 0 if there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        """It runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def up(self) -> bool:
        """It runs, and was of use since it started."""
        if not self.alive or self._ending:
            return False
        if self._up_pid != self.pid and self._is_up(self.pid):
            self._up_pid, self._up_since = self.pid, time.monotonic()
            self.journal.write("of-use", target=self.name, victim=self.pid)
        return self._up_pid == self.pid

    @property
    def at_work(self) -> bool:
        """It has been of use for a moment, and so may have something to lose."""
        return self.up and time.monotonic() - self._up_since >= AT_WORK_S

    def start(self) -> None:
        """Starts it; it may take a while until it is of use."""
        self.wanted, self._ending, self.stopped = True, "", False
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("JOBWIRE_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={**inherited, **self.env, "PYTHONUNBUFFERED": "1"},
            )
        self.journal.write("start", target=self.name, victim=self.pid)

    def kill(self, fault: int, down_s: float) -> bool:
        """kill -9; it is started again after a while. False: it did not run."""
        if not self.alive:
            return False
        self._ending = "kill"
        self.journal.write("kill", target=self.name, victim=self.pid, fault=fault)
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.journal.write("exit", target=self.name, victim=self.pid, code=-9, asked=True)
        self.starts_at = time.monotonic() + down_s
        self._process = None
        return True

    def terminate(self, fault: int, down_s: float) -> bool:
        """SIGTERM; it is started again a while after its end."""
        if not self.alive or self._ending:
            return False
        self._ending = "term"
        self.starts_at = down_s
        self._ends_by = time.monotonic() + END_S
        self.journal.write("term", target=self.name, victim=self.pid, fault=fault)
        assert self._process is not None
        self._process.terminate()
        return True

    def stop(self, fault: int) -> bool:
        """SIGSTOP: it stands still, and its connections stay."""
        if not self.alive:
            return False
        self.journal.write("stop", target=self.name, victim=self.pid, fault=fault)
        self._signal(signal.SIGSTOP)
        self.stopped = True
        return True

    def resume(self) -> None:
        """Lets it go on."""
        if self.stopped:
            self._signal(signal.SIGCONT)
            self.stopped = False
            self.journal.write("cont", target=self.name, victim=self.pid)

    def look(self) -> None:
        """Notes its end, and starts it when it is time to."""
        if self._process is not None and self._process.poll() is not None:
            code, asked = self._process.returncode, self._ending == "term"
            self.journal.write(
                "exit",
                target=self.name,
                victim=self.pid,
                code=code,
                asked=asked or code in self.may_end,
                early=self._up_pid != self.pid,
            )
            self.starts_at = time.monotonic() + (self.starts_at if asked else RESTART_S)
            self._process, self._ending = None, ""
        elif self._ending == "term" and time.monotonic() > self._ends_by and not self.stopped:
            self.journal.write("hung", target=self.name, victim=self.pid, after_s=END_S)
            self._ends_by = float("inf")
            self._signal(signal.SIGKILL)
        if self._process is None and self.wanted and time.monotonic() >= self.starts_at:
            self.start()

    def end(self, timeout_s: float = END_S) -> None:
        """Ends it for good: SIGTERM, and a kill where that does not help."""
        self.wanted = False
        self.resume()
        if self._process is None:
            return
        if not self.alive:
            self.look()
            return
        self.journal.write("term", target=self.name, victim=self.pid, fault=0)
        self._ending, self.starts_at = "term", 0.0
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        if self.alive:
            self.journal.write("hung", target=self.name, victim=self.pid, after_s=timeout_s)
            self._process.kill()
            self._process.wait()
        self.look()

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def children(pid: int) -> list[int]:
    """The ids of a process's children; none where /proc is not there."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(each) for each in text.split()]

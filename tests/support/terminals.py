"""Programs on a terminal of their own, as a person would run them."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from jobwire.cli.terminal import prepare

DEADLINE_S = 60.0
# So that Ctrl-C reaches the program, and a hang-up is one. Not between a fork and its exec, where
# gRPC's threads of this process would be missed.
_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@contextmanager
def own_terminal(term: str = "xterm-256color") -> Iterator[Callable[[], bytes]]:
    """Gives this process a terminal for a while; what it gives tells what was written, at the end.

    Args:
        term: The kind of terminal.
    """
    master, inner = pty.openpty()
    _set_raw(inner)
    parts: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # it has been closed
                return
            parts.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    former = sys.stdin, sys.stdout, sys.stderr
    terms = os.environ.get("TERM")
    os.environ["TERM"] = term
    try:
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(os.dup(inner), mode) for mode in "rww")
        prepare()
        yield lambda: b"".join(parts)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            stream.close()
        sys.stdin, sys.stdout, sys.stderr = former
        if terms is None:
            del os.environ["TERM"]
        else:
            os.environ["TERM"] = terms
        os.close(inner)
        reader.join(DEADLINE_S)
        os.close(master)


def _set_raw(inner: int, lines: int = 24, columns: int = 80) -> None:
    """Sets a size, and passes on what is written without a return before each newline."""
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    modes = termios.tcgetattr(inner)
    modes[1] &= ~termios.OPOST
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(inner, termios.TCSANOW, modes)


class Terminal:
    """A program with a terminal as its standard streams and its controlling terminal.

    Args:
        arguments: The program and its arguments.
        environment: Added to that of the tests; None takes a variable away.
        cwd: Where it runs.
        columns: The width of the terminal.
        lines: Its height.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        columns: int = 80,
        lines: int = 24,
    ) -> None:
        merged = {**os.environ, "TERM": "xterm-256color", **(environment or {})}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            if name not in (environment or {}):
                merged.pop(name, None)
        self._master, inner = pty.openpty()
        _set_raw(inner, lines, columns)
        self.process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _TAKE_TERMINAL, *arguments],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            cwd=cwd,
            env={name: value for name, value in merged.items() if value is not None},
            start_new_session=True,
        )
        os.close(inner)
        self.seen = b""

    @property
    def text(self) -> str:
        """What was written so far, without escape sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", self.seen.decode(errors="replace"))

    def type(self, keys: str) -> None:
        """Presses keys; `\\x03` is Ctrl-C."""
        os.write(self._master, keys.encode())

    def read_until(self, pattern: str, timeout_s: float = DEADLINE_S) -> re.Match[str]:
        """Waits for a text, and returns the match of its first appearance."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = re.search(pattern, self.text)
            if found:
                return found
            assert self._read(deadline), f"{pattern!r} did not come:\n{self.text[-2000:]}"

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """Reads on until the program ends, and returns its exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        """Reads what there is; False: nothing comes any more, or not in time."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the last process that had it open is gone
            return False
        self.seen += data
        return bool(data)

    def hang_up(self) -> None:
        """Closes the terminal, as when its window is closed."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.hang_up()

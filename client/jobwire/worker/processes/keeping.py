"""The worker's side of the keeper, and what its forked children must not hold."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

_END_S = 5.0


class Keeper:
    """Tells the keeper which groups there are; starts it with the first one. Thread-safe.

    See `jobwire.worker.processes.keeper`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()

    def keep(self, group: int) -> None:
        """Make the keeper end a group if the worker dies."""
        with self._lock:
            self._groups.add(group)
            if self._process is not None and self._write(f"+{group}\n"):
                return
            if self._process is not None:
                self._leave()  # somebody killed it
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    Path(__file__).with_name("keeper.py"),
                    str(os.getpid()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
            assert self._process.stdin is not None
            not_for_children(self._process.stdin)
            self._write("".join(f"+{kept}\n" for kept in self._groups))

    def forget(self, group: int) -> None:
        """Make the keeper forget a group, whose id may be reused."""
        with self._lock:
            self._groups.discard(group)
            self._write(f"-{group}\n")

    def close(self) -> None:
        """End the keeper; block until it has ended."""
        with self._lock:
            self._leave()

    def _write(self, text: str) -> bool:
        if self._process is None or self._process.stdin is None:
            return False
        try:
            self._process.stdin.write(text.encode())
        except OSError:
            return False
        return True

    def _leave(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            # It notices by the closed pipe; where a forked child of this process holds that open,
            # it would only notice the end of the worker.
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


_OURS: weakref.WeakSet[Connection | IO[bytes]] = weakref.WeakSet()


def not_for_children(end: Connection | IO[bytes]) -> None:
    """Make forked children close an end of a pipe, so that its other side notices when this process
    ends."""
    _OURS.add(end)


def _close_in_child() -> None:
    for end in list(_OURS):
        with suppress(OSError):
            end.close()
    _OURS.clear()


os.register_at_fork(after_in_child=_close_in_child)

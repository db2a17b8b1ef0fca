"""What tests start and do not end: found, ended, and told."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

# From <linux/prctl.h>.
_PR_SET_CHILD_SUBREAPER = 36
# A process that was told to end may take so long.
_END_DEADLINE_S = 5.0

kept: set[int] = set()
"""Processes that the whole run shares."""
adopts = False
"""This process is the parent of those whose own parent ends."""


def adopt_orphans() -> None:
    """Make this process the parent of those whose own parent ends. Linux only."""
    global adopts
    if sys.platform == "linux":
        adopts = ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def children() -> dict[int, str]:
    """Return the processes that this one has to answer for, with their command lines."""
    found = {}
    with suppress(FileNotFoundError):  # not on Linux
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # a thread that has ended
                for pid in map(int, (task / "children").read_text().split()):
                    if (command := _command(pid)) is not None:
                        found[pid] = command
    return found


def end_leftovers(before: dict[int, str]) -> list[str]:
    """Wait a moment for what is about to end, then kill the rest.

    Args:
        before: What ran before the tests in question.

    Returns:
        The command lines of those killed.
    """
    deadline = time.monotonic() + _END_DEADLINE_S
    while left := {p: c for p, c in children().items() if p not in before and p not in kept}:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
    return [f"{pid}: {command}" for pid, command in left.items()]


def _command(pid: int) -> str | None:
    """None of one that has ended, and of Python's own helper, which ends with its parent."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    text = b" ".join(words).decode(errors="replace").strip()
    # A zombie has no command line; who started it reads its status.
    helper = "resource_tracker" in text or "forkserver" in text
    return text if text and not helper else None

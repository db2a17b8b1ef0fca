"""Process groups: who is in one, how to end it, and how much a process holds."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Running:
    """A process that runs, or has ended and was not waited for."""

    pid: int
    parent: int
    group: int
    is_zombie: bool
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.pid})"


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if it is there."""
    # macOS answers EPERM for a group of zombies.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def end_others(group: int, grace_s: float) -> None:
    """End a group whose leader has ended and was not waited for yet: SIGTERM, then SIGKILL.

    Args:
        group: Its id cannot be given to another one meanwhile, as its leader is a zombie.
        grace_s: The time between the two, and for the second to work; shortened if all end before.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not members(group):
            return
        signal_group(group, number)
        end_s = time.monotonic() + grace_s
        while members(group) and time.monotonic() < end_s:
            time.sleep(_LOOK_S)


def members(group: int) -> list[Running]:
    """Return those of a group that have not ended."""
    return [one for one in processes() if one.group == group and not one.is_zombie]


def children() -> list[Running]:
    """Return the children of this process that have not ended, but for multiprocessing's own."""
    me, own = os.getpid(), helpers()
    return [
        one for one in processes() if one.parent == me and not one.is_zombie and one.pid not in own
    ]


def helpers() -> set[int | None]:
    """Return the processes that multiprocessing keeps for itself."""
    tracker = getattr(resource_tracker, "_resource_tracker", None)
    server = getattr(forkserver, "_forkserver", None)
    return {getattr(tracker, "_pid", None), getattr(server, "_forkserver_pid", None)}


def processes() -> Iterator[Running]:
    """Yield the processes that this one may see."""
    if sys.platform == "linux":
        yield from _from_proc()
    else:
        yield from _from_ps()


def _from_proc() -> Iterator[Running]:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path("/proc", entry, "stat").read_text(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        # The name stands in parentheses and may hold any character.
        name, _, rest = text.partition("(")[2].rpartition(")")
        state, parent, group = rest.split()[:3]
        yield Running(int(entry), int(parent), int(group), state in "ZX", name)


def _from_ps() -> Iterator[Running]:
    try:
        ran = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,pgid=,stat=,comm="],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError:
        return
    for line in ran.stdout.splitlines():
        pid, parent, group, state, *name = line.split(None, 4)
        yield Running(int(pid), int(parent), int(group), state.startswith("Z"), "".join(name))


class Memory:
    """Tells how much memory this process holds."""

    def __init__(self) -> None:
        self._page_size = os.sysconf("SC_PAGE_SIZE")
        # Read after each job, and most of the time would go into opening it.
        self._file: int | None = None
        with suppress(OSError):
            self._file = os.open("/proc/self/statm", os.O_RDONLY)

    def resident_bytes(self) -> int:
        """Look; where the system does not tell, or a handler has closed the file, the peak."""
        if self._file is not None:
            try:
                return int(os.pread(self._file, 256, 0).split()[1]) * self._page_size
            except (OSError, ValueError, IndexError):
                self._file = None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10

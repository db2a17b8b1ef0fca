"""Ends the process groups of handlers when their worker has died.

The worker starts it as a separate program, which needs only the standard library. It reads lines
from standard input: `+GROUP` for a group that began, `-GROUP` for one that has ended. A handler's
process also watches its worker, but it may be stopped, killed with the worker, or hold the
interpreter's lock for minutes; what it has started would then keep running.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import suppress

_LOOK_S = 1.0


def keep(worker: int) -> None:
    """Wait for the end of the worker, and end the groups that are left.

    Args:
        worker: Its process id.
    """
    # Signals that the terminal or a service manager sends to all are the worker's to handle.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    rest = b""
    # A forked child of the worker may hold the other end open; then our parent's id changes.
    while os.getppid() == worker:
        if not select.select([0], [], [], _LOOK_S)[0]:
            continue
        data = os.read(0, 1 << 16)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
    for group in groups:
        with suppress(OSError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    keep(int(sys.argv[1]))

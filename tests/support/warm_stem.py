"""The process that commands are forked off; see `tests.support.warm`.

Usage: warm_stem.py DESCRIPTOR OF A SOCKET
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

# Not by name: what the commands import is all that is wanted.
import jobwire
import jobwire.cli.app
import jobwire_server.host.child
import jobwire_server.host.command  # noqa: F401
from jobwire.cli import group

LENGTH_BYTES = 4
MOST_DESCRIPTORS = 5
CHILD = "jobwire_server.host.child_start"
_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Import everything, and fork off what is asked for."""
    asked = socket.socket(fileno=int(sys.argv[1]))
    sys.path.append(os.getcwd())
    group.register_all()
    for name in jobwire.__all__:
        getattr(jobwire, name)
    gc.freeze()
    fork_off(asked)


def fork_off(asked: socket.socket) -> None:
    """Fork off what is asked for, until nobody asks any more; each fork returns at its end."""
    while True:
        length, streams, _, _ = socket.recv_fds(asked, LENGTH_BYTES, MOST_DESCRIPTORS)
        if not length:
            return
        text = asked.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
        middle_says, says = os.pipe()
        middle = os.fork()
        if middle == 0:
            # With its parent gone the process becomes a child of those who adopt orphans: of the
            # tests, or of a server of several processes.
            middle = os.getpid()
            if (pid := os.fork()) == 0:
                while os.getppid() == middle:
                    time.sleep(0.0002)
                asked.detach()
                become(json.loads(text), streams)
                return
            os.write(says, pid.to_bytes(LENGTH_BYTES, "big"))
            os._exit(0)
        os.waitpid(middle, 0)
        asked.sendall(os.read(middle_says, LENGTH_BYTES))
        for descriptor in (middle_says, says, *streams):
            os.close(descriptor)


def become(wanted: tuple[str, list[str], str, dict[str, str]], streams: list[int]) -> None:
    """Run a module as Python does with `-m`, and end as it ends."""
    module, arguments, folder, environment = wanted
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(len(streams), 1024)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _text(number, getattr(sys, name))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if arguments[:1] == ["worker"]:  # which it finds there once it has begun anew
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
    sys.argv = [module, *arguments]
    sys.orig_argv = [sys.executable, "-m", module, *arguments]
    sys.path[0] = folder
    if module == CHILD:
        os.setsid()
    elif "--processes" in arguments:
        keep_a_nurse()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def keep_a_nurse() -> None:
    """Have this server's processes forked off as well, by one that stays as this one is now.

    Each would spend most of a second on the imports otherwise.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        os.setsid()  # a signal to the server's group is not for it
        fork_off(theirs)
        sys.exit()
    theirs.close()
    start = subprocess.Popen

    def start_warm(args: Sequence[str], **options: Any) -> Any:
        if CHILD not in args:
            return start(args, **options)
        nothing = os.open(os.devnull, os.O_RDONLY)
        streams = [nothing, 1, 2, *options["pass_fds"]]
        environment = dict(os.environ)
        wanted = json.dumps([CHILD, ["3", "4"], os.getcwd(), environment]).encode()
        socket.send_fds(ours, [len(wanted).to_bytes(LENGTH_BYTES, "big")], streams)
        ours.sendall(wanted)
        os.close(nothing)
        return NursedProcess(int.from_bytes(ours.recv(LENGTH_BYTES, socket.MSG_WAITALL), "big"))

    subprocess.Popen = start_warm  # type: ignore[assignment, misc]


class NursedProcess:
    """Stands for a `subprocess.Popen`, as far as a server uses that."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended = False

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        _, status = os.waitpid(self.pid, 0)
        self._ended = True
        return os.waitstatus_to_exitcode(status)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if not self._ended:
            os.kill(self.pid, number)


def _text(number: int, former: io.TextIOWrapper) -> io.TextIOWrapper:
    unbuffered = number > 0 and bool(os.environ.get("PYTHONUNBUFFERED"))
    return io.TextIOWrapper(
        # As long as the process lives.
        open(number, "wb" if number else "rb", buffering=0 if unbuffered else -1, closefd=False),
        encoding=former.encoding,
        errors=former.errors,
        write_through=unbuffered,
        line_buffering=number == 2 or (number == 1 and os.isatty(number)),
    )


if __name__ == "__main__":
    main()

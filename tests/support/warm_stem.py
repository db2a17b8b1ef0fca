"""The process that commands are forked off; see `tests.support.warm`.

Usage: warm_stem.py DESCRIPTOR OF A SOCKET
"""

from __future__ import annotations

import gc
import io
import json
import os
import runpy
import socket
import sys
import time

# Not by name: what the commands import is all that is wanted.
import jobwire
import jobwire.cli.app
import jobwire_server.host.command  # noqa: F401
from jobwire.cli import group

LENGTH_BYTES = 4


def main() -> None:
    """Fork off what is asked for, until nobody asks any more."""
    asked = socket.socket(fileno=int(sys.argv[1]))
    sys.path.append(os.getcwd())
    group.register_all()
    for name in jobwire.__all__:
        getattr(jobwire, name)
    gc.freeze()
    while True:
        length, streams, _, _ = socket.recv_fds(asked, LENGTH_BYTES, 3)
        if not length:
            return
        text = asked.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
        middle_says, says = os.pipe()
        middle = os.fork()
        if middle == 0:
            # With its parent gone the process becomes a child of the tests, which adopt orphans.
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
    os.closerange(3, 1024)
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
    runpy.run_module(module, run_name="__main__", alter_sys=True)


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

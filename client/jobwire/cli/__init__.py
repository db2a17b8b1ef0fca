"""The command `jobwire`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

__all__ = ["main"]

INTERRUPTED = 130
"""The exit code after Ctrl-C, `Exit.INTERRUPTED`; this module imports nothing before `prepare`."""


def main() -> NoReturn:
    """Run the command line of this process, and end it."""
    # Before gRPC is imported, whose library writes a line of its own form for each handshake
    # that fails, at the rate of whoever connects.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        from jobwire.cli.importing import uncollected

        with uncollected():
            # Before anything opens a file: it would get the number of a standard stream that is
            # closed.
            from jobwire.cli.terminal import prepare

            prepare()
            if "worker" in sys.argv and sys.platform == "linux":
                # Before gRPC is imported, which reads it then: a worker without it begins anew, and
                # to other commands, which have no children, it makes no difference.
                os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
            from jobwire.cli.app import run

        code = run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        _end_at_once(code)
    sys.exit(code)


def _end_at_once(code: int) -> NoReturn:
    """End the process without tearing Python down.

    After Ctrl-C in the middle of a stream, gRPC may have corrupted the heap: with grpcio 1.82.3 one
    of some 90 watches died of SIGABRT in the last garbage collection, instead of exiting with 130.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)

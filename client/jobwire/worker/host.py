"""What a worker does to the process that it owns."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobwire.worker.processes.groups import children

log = logging.getLogger("jobwire.worker")

FORK_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"
"""gRPC reads it when it is imported. Unless it is false, gRPC starts threads in a forked child
that use its parent's connections, and one child in four of a worker dies of SIGSEGV
(grpcio 1.82.3: 99 of 400; with it 0 of 400). A client's child needs it, a worker's must not have
it.
"""
_FORK_SUPPORT = os.environ.get(FORK_VARIABLE, "")


def forks_are_safe() -> bool:
    """Tell whether this process may be forked while a worker runs in it."""
    return sys.platform != "linux" or _FORK_SUPPORT.lower() in ("0", "false", "no")


def let_pools_start_afresh() -> None:
    """Make the pools of handlers start their processes without forking this one, unless the
    application has chosen a way.
    """
    if forks_are_safe() or multiprocessing.get_start_method(allow_none=True) is not None:
        return
    multiprocessing.set_start_method("forkserver")


def warn_of_fork() -> None:
    """Warn that this process was forked."""
    log.error(
        "this process was forked while gRPC's threads run in it, and the child may die of SIGSEGV:"
        " start the children of handlers by 'spawn' or 'forkserver', or set %s=false in the"
        " worker's environment (`jobwire worker` does)",
        FORK_VARIABLE,
    )


@contextmanager
def naming_what_runs_on() -> Iterator[None]:
    """Warn of processes that were started meanwhile and are still running afterwards.

    Only the handlers themselves, in threads and on the event loop, know of those.
    """
    before = {child.pid for child in children()}
    try:
        yield
    finally:
        left = [child for child in children() if child.pid not in before]
        if left:
            log.warning(
                "handlers left processes running: %s; end them in the handler, or run it as"
                " 'process', and they end with it",
                ", ".join(map(str, left)),
            )


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Pick uvloop where it is installed, the faster loop under gRPC."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def new_worker_id() -> str:
    host = re.sub(r"[^A-Za-z0-9._:@-]", "-", socket.gethostname())
    return f"{host[:40]}-{os.getpid()}-{secrets.token_hex(4)}"

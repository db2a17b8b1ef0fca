"""Makes a process that a handler forks forget the worker.

A forked child has copies of the worker's signal handlers, of the descriptor by which signals wake
its event loop (shared with the parent: a SIGTERM for the child would stop the worker), and of the
pools' queues. It forgets them, and becomes a plain process that ends like any other.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn
from weakref import WeakSet

from jobwire.worker import host

# The handlers that Python code had set before a worker set its own, by signal.
former_handlers: dict[int, Any] = {}
# Parts of workers, which are told in a forked child.
_parts: WeakSet[Any] = WeakSet()
_hooked = False
is_child = False
"""True in a child of a process with a worker."""
_warned = False


def watch(part: Any) -> None:
    """Call `part.forget_in_child()` in each child that is forked while the part lives."""
    global _hooked
    _parts.add(part)
    if not _hooked and hasattr(os, "register_at_fork"):
        _hooked = True
        os.register_at_fork(after_in_child=_in_child, after_in_parent=_in_parent)


def _in_parent() -> None:
    global _warned
    if _parts and not _warned and not host.forks_are_safe():
        _warned = True
        host.warn_of_fork()


def _in_child() -> None:
    global is_child
    if not _parts:
        return
    is_child = True
    with suppress(ValueError, OSError):
        signal.set_wakeup_fd(-1)
    for number, handler in former_handlers.items():
        with suppress(ValueError, OSError, TypeError):
            signal.signal(number, handler)
    former_handlers.clear()
    for part in list(_parts):
        part.forget_in_child()
    _parts.clear()


def end_child(name: str, error: BaseException | None) -> NoReturn:
    """End a child that comes back from a handler: the rest of the worker is its parent's.

    Args:
        name: Of the operation.
        error: What the handler raised in the child; None: it returned.
    """
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        code = 1
        traceback.print_exception(error)
    else:
        print(
            f"a child that the handler of {name!r} forked came back from the handler, and is ended"
            " here: let it end with os._exit()",
            file=sys.stderr,
        )
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


def guarded(call: Callable[[], None]) -> Callable[[], None]:
    """Return a callback that does nothing in a forked child."""

    def in_parent() -> None:
        if not is_child:
            call()

    return in_parent

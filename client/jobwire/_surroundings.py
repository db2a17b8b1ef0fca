"""Forks and green threads, of which gRPC must be told."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any
from weakref import WeakSet

log = logging.getLogger("jobwire.client")

FORK_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"
_TRUE = {"yes", "1", "true", "y", "on"}

# What gRPC's own threads take, at most, to tell a server that a stream ends.
_SETTLING_S = 0.03

_forks = 0
_busy_until = 0.0
_has_warned = False
_streams: WeakSet[Any] = WeakSet()
_left_behind: list[object] = []
_gevent_is_told = False
_aio_since: int | None = None
"""How many forks lay behind the process that first used gRPC's asyncio."""


def forks() -> int:
    """Return how many forks lie between this process and the one that imported the package."""
    return _forks


def leave_behind(*things: object) -> None:
    """Keep what a forked child has of its parent's connections alive, and untouched.

    Closing or collecting them would make the child act on threads that it does not have, and on
    sockets that it shares with its parent.
    """
    _left_behind.extend(things)


def note_stream(stream: object) -> None:
    """Take note of a stream that threads read, for as long as it is held."""
    _streams.add(stream)


def _warn_before_fork() -> None:
    global _has_warned
    if _has_warned or has_gevent() or os.environ.get(FORK_VARIABLE, "").lower() in _TRUE:
        return
    if any(stream.is_active() for stream in [*_streams]):
        _has_warned = True
        log.warning(
            "this process forks while it watches a job; so that gRPC survives that in the child,"
            " start Python with %s=1, or end what is under way before",
            FORK_VARIABLE,
        )


def note_end() -> None:
    """Note that a stream ends, of which gRPC's own threads have something to do for a moment."""
    global _busy_until
    _busy_until = time.monotonic() + _SETTLING_S


def _settle() -> None:
    # A lock of gRPC that is held at the moment of a fork stays so in the child.
    wait_s = _busy_until - time.monotonic()
    if wait_s > 0:
        time.sleep(wait_s)


def _count() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    # The last one registered goes first; those of streams are registered later.
    os.register_at_fork(before=_settle)
    os.register_at_fork(before=_warn_before_fork, after_in_child=_count)


def suit_threads() -> None:
    """Make gRPC work with gevent if that replaces threads; call it before channels open.

    Raises:
        RuntimeError: eventlet did.
    """
    global _gevent_is_told
    _refuse_eventlet()
    if has_gevent() and not _gevent_is_told:
        from grpc.experimental.gevent import init_gevent

        _gevent_is_told = True
        init_gevent()


def check_asyncio() -> None:
    """Refuse surroundings in which gRPC's asyncio does not work; call it before channels open.

    Its one thread must be a real one, and a forked child has none, nor a way to start another.

    Raises:
        RuntimeError: gevent or eventlet replaced threads, or the process was forked off
            from one that used gRPC's asyncio.
    """
    global _aio_since
    _refuse_eventlet()
    if has_gevent():
        raise RuntimeError(
            "gevent has patched threads, and gRPC's asyncio needs real ones: use jobwire.Client,"
            " which works under gevent, and run workers in processes without gevent"
        )
    if _aio_since is None:
        _aio_since = _forks
    if _aio_since != _forks:
        raise RuntimeError(
            "this process was forked off from one that had used AsyncClient or Worker, and gRPC's"
            " asyncio does not outlive that: fork before they are used, start children by spawn,"
            " or use jobwire.Client, which works after a fork"
        )


def has_gevent() -> bool:
    """Tell whether gevent replaced threads."""
    # Asked of what is imported: this package must not import gevent.
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _refuse_eventlet() -> None:
    patcher: Any = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("thread"):
        raise RuntimeError(
            "eventlet has patched threads, and gRPC can't work with that: use gevent or real"
            " threads, or leave threads out: eventlet.monkey_patch(thread=False)"
        )


class _LateNews(logging.Filter):
    """Drops what asyncio logs when gRPC has news for a loop that has ended.

    gRPC's asyncio has one thread, which wakes any loop for events of all loops. An event for a
    closed loop, or one that another loop has fetched already, is harmless.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not (
            isinstance(error, RuntimeError | BlockingIOError)
            and "PollerCompletionQueue._handle_events" in record.getMessage()
        )


_late_news = _LateNews()


def expect_several_loops() -> None:
    """Silence messages of gRPC that are harmless where several loops are used."""
    logging.getLogger("asyncio").addFilter(_late_news)

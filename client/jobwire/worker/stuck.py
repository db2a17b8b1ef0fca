"""Handlers that do not stop when they are told to, and the slots that they take."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable

from jobwire.worker.held import Held
from jobwire.worker.runner import held_in, where

log = logging.getLogger("jobwire.worker")

STUCK_AFTER_S = 5.0
"""A handler that keeps running this long after it was told to stop is stuck."""


class Stuck:
    """Counts them, and logs where they stand.

    Args:
        concurrency: How many slots there are.
        max_abandoned: How many at most may give their slots to others and run beside them.
    """

    def __init__(self, concurrency: int, max_abandoned: int) -> None:
        self._concurrency = concurrency
        self._max_abandoned = max_abandoned
        self._stuck: set[Held] = set()
        self._abandoned: set[Held] = set()
        self._said_full = False

    @property
    def count(self) -> int:
        """How many take slots."""
        return len(self._stuck)

    def found(self, held: Held) -> bool:
        """Note a stuck handler; return True if it may be abandoned."""
        if held not in self._stuck:
            self._stuck.add(held)
            log.warning(
                "the handler of %r, job %s, keeps running although it was told to stop (%s)%s; it"
                " takes one of %d slots",
                held.assignment.spec.operation,
                held.job_id,
                held.signal.reason,
                _place(held),
                self._concurrency,
            )
        if len(self._stuck) >= self._concurrency and not self._said_full:
            self._said_full = True
            log.error(
                "STUCK %d/%d: all slots are taken by handlers that do not stop; the worker takes"
                " no jobs until one of them ends",
                len(self._stuck),
                self._concurrency,
            )
        return len(self._abandoned) < self._max_abandoned

    def abandon(self, held: Held) -> None:
        """Give its slot to others; what it still does counts no more."""
        self._stuck.discard(held)
        self._said_full = False
        self._abandoned.add(held)
        log.warning(
            "%s is left alone, and its slot is given to others (%d of at most %d)",
            held.job_id,
            len(self._abandoned),
            self._max_abandoned,
        )

    def ended(self, held: Held) -> bool:
        """Note that a handler has stopped at last; return True if it had been abandoned."""
        if held.stop_timer is not None:
            held.stop_timer.cancel()
        if held in self._stuck:
            self._stuck.discard(held)
            self._said_full = False
            log.info("the handler of %s has stopped at last", held.job_id)
        if held in self._abandoned:
            self._abandoned.discard(held)
            log.info("the abandoned handler of %s has ended", held.job_id)
            return True
        return False

    def close(self, running: Iterable[Held]) -> None:
        """Stop the timers."""
        for held in running:
            if held.stop_timer is not None:
                held.stop_timer.cancel()


def _place(held: Held) -> str:
    """Return where the handler stands, if it has a thread or a task."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        if ident in names and held_in(frame) is held:
            return f", {where(frame)}"
    if held.task is not None and (stack := held.task.get_stack(limit=1)):
        return f", {where(stack[0])}"
    return ""

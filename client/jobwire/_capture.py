"""Sends what a handler logs and prints to its job's output."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from jobwire.output import check_channel


class RunningJob(Protocol):
    """What this module needs of a handler's context."""

    @property
    def job_id(self) -> str:
        """The job."""

    @property
    def operation(self) -> str:
        """The job's type."""

    @property
    def attempt(self) -> int:
        """1 for the first delivery."""

    def output(
        self, content: str | bytes, channel: str = "stdout", *, ignore_full: bool = False
    ) -> None:
        """Write out a piece of text or bytes."""


current_context: ContextVar[RunningJob | None] = ContextVar("jobwire_context", default=None)
"""The job whose handler runs here."""


class OutputHandler(logging.Handler):
    """Feeds log records to a job's output.

    Args:
        context: The job; None: the job of the handler that logs a record, if any, so that one
            `OutputHandler` may be added to any logger.
        channel: Where they go.
    """

    def __init__(self, context: RunningJob | None = None, channel: str = "log") -> None:
        super().__init__()
        self._context = context
        self._channel = check_channel(channel)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; errors are handled as `logging` handles them."""
        context = self._context or current_context.get()
        if context is None:
            return
        try:
            context.output(self.format(record) + "\n", self._channel, ignore_full=True)
        except Exception:
            self.handleError(record)


_captured: ContextVar[RunningJob | None] = ContextVar("jobwire_captured", default=None)


class _Redirect(io.TextIOBase):
    """Stands in for a standard stream: what a capturing handler writes goes to its job."""

    def __init__(self, stream: Any, channel: str) -> None:
        self._stream = stream
        self._channel = channel

    def write(self, text: str) -> int:
        context = _captured.get()
        if context is None:
            return int(self._stream.write(text))
        context.output(text, self._channel, ignore_full=True)
        return len(text)

    def flush(self) -> None:
        if not self._stream.closed:
            self._stream.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return _captured.get() is None and bool(self._stream.isatty())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Redirects:
    """Puts the stand-ins in place while anybody captures."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captures = 0
        self._placed: dict[str, _Redirect] = {}

    def place(self) -> None:
        with self._lock:
            self._captures += 1
            if self._captures == 1:
                for name in ("stdout", "stderr"):
                    self._placed[name] = _Redirect(getattr(sys, name), name)
                    setattr(sys, name, self._placed[name])

    def remove(self) -> None:
        with self._lock:
            self._captures -= 1
            if self._captures == 0:
                for name, placed in self._placed.items():
                    # Somebody else may have put their own on top of it.
                    if getattr(sys, name) is placed:
                        setattr(sys, name, placed._stream)
                self._placed.clear()


_redirects = _Redirects()


@contextmanager
def capture(context: RunningJob) -> Iterator[None]:
    """Send what this thread or task prints to the job's channels `stdout` and `stderr`."""
    _redirects.place()
    token = _captured.set(context)
    try:
        yield
    finally:
        _captured.reset(token)
        _redirects.remove()

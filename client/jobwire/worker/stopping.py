"""The ways to end a worker: signals, and `stop()` from wherever it is called."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from contextlib import suppress
from typing import Any

from jobwire.worker import forks

log = logging.getLogger("jobwire.worker")


class Leaving(Coroutine[Any, Any, None]):
    """A worker's end, under way. `await` it on any event loop, `wait` for it in a thread, or
    leave it alone.
    """

    def __init__(self) -> None:
        self._future: Future[None] = Future()
        # Whoever stops waiting for it does not stop it.
        self._future.set_running_or_notify_cancel()
        self._steps: Generator[Any, Any, None] | None = None

    def end(self, error: BaseException | None = None) -> None:
        """Note that the worker has left."""
        if self._future.done():
            return
        if error is None or isinstance(error, asyncio.CancelledError):
            self._future.set_result(None)
        else:
            self._future.set_exception(error)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the worker has left; do not call it on the worker's event loop.

        Args:
            timeout_s: How long to wait, in seconds; None: no limit.

        Returns:
            False if `timeout_s` passes first.
        """
        try:
            self._future.result(timeout_s)
        except NotInTime:
            return False
        return True

    def __await__(self) -> Generator[Any, Any, None]:
        return asyncio.wrap_future(self._future).__await__()

    # What makes it a coroutine, for `asyncio.create_task(worker.stop())`.

    def send(self, value: Any) -> Any:
        """As of any coroutine."""
        if self._steps is None:
            self._steps = self.__await__()
        return self._steps.send(value)

    def throw(self, *error: Any) -> Any:
        """As of any coroutine."""
        if self._steps is None:
            self._steps = self.__await__()
        return self._steps.throw(*error)

    def close(self) -> None:
        """As of any coroutine."""
        if self._steps is not None:
            self._steps.close()


class Signals:
    """Calls a function on SIGTERM and SIGINT, on the running loop, where signals can be had."""

    def __init__(self, call: Callable[[], None]) -> None:
        # A forked child must not act on what is the parent's.
        self._call = forks.guarded(call)
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            log.info(
                "the worker runs in the thread %r, where no signals arrive: end it with"
                " worker.stop()",
                threading.current_thread().name,
            )
            return
        loop = asyncio.get_running_loop()

        def wake(*_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._call)

        for number in (signal.SIGTERM, signal.SIGINT):
            self._former[number] = forks.former_handlers[number] = signal.getsignal(number)
            try:
                loop.add_signal_handler(number, self._call)
            except (NotImplementedError, RuntimeError, ValueError):
                # Windows, or a loop inside of another program's.
                signal.signal(number, wake)

    def __exit__(self, *error: object) -> None:
        if forks.is_child:
            return
        for number, former in self._former.items():
            with suppress(NotImplementedError, RuntimeError, ValueError):
                asyncio.get_running_loop().remove_signal_handler(number)
            if former is not None:
                signal.signal(number, former)
            forks.former_handlers.pop(number, None)
        self._former.clear()

"""Work in the background: each task has an owner, which awaits it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

import structlog

from jobwire_server.domain.errors import JobwireError

log = structlog.get_logger(__name__)

Result = TypeVar("Result")
AnyFuture = TypeVar("AnyFuture", bound="asyncio.Future[Any]")


class Alarm:
    """Wakes whoever sleeps on it when something is due, or at the end of the sleep."""

    def __init__(self) -> None:
        self._due_s = float("inf")
        self._set = asyncio.Event()

    def due_in(self, wait_s: float) -> None:
        """Something is due so many seconds from now: no sleep lasts longer than that."""
        at = asyncio.get_running_loop().time() + max(0.0, wait_s)
        if at < self._due_s:
            self._due_s = at
            self._set.set()

    async def sleep(self, wait_s: float) -> None:
        """Sleep so many seconds, less if something is due before."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            self._set.clear()
            left_s = min(until, self._due_s) - loop.time()
            if left_s <= 0:
                break
            try:
                async with asyncio.timeout(left_s):
                    await self._set.wait()
            except TimeoutError:
                break
        self._due_s = float("inf")
        # One turn for everybody else even if there is always more to do.
        await asyncio.sleep(0)


class Loop:
    """Takes a step over and over, whatever becomes of it. `start` and `stop` are idempotent, and
    `stop` tolerates never started.

    Args:
        name: Of its task, and in the log.
        step: Does the work once; returns how long to wait for the next, seconds.
        error_pause_s: About how long to wait behind a step that failed.
        alarm: Brings the next step forward; others may have it. None: it has its own.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[float]],
        *,
        error_pause_s: float = 1.0,
        alarm: Alarm | None = None,
    ) -> None:
        self.name = name
        self._step = step
        self._error_pause_s = error_pause_s
        self._alarm = alarm or Alarm()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin with the first step."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        """Break off the step that is under way, and take no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @property
    def runs(self) -> bool:
        """True between `start` and `stop`."""
        return self._task is not None

    def wake(self) -> None:
        """Take the next step at once; one that is under way is followed by another."""
        self._alarm.due_in(0)

    async def _run(self) -> None:
        while True:
            try:
                wait_s = await self._step()
            except JobwireError as error:
                log.debug("background step refused", loop=self.name, error=error.message)
                wait_s = self._error_pause_s * random.uniform(0.5, 1.5)
            except Exception:
                # What stood still from now on would be missed by nobody but its users.
                log.exception("background step failed", loop=self.name)
                wait_s = self._error_pause_s * random.uniform(0.5, 1.5)
            await self._alarm.sleep(wait_s)


class OwnedTasks:
    """Tasks that outlive whoever began them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(
        self,
        work: Coroutine[Any, Any, Result],
        name: str = "owned-task",
        *,
        context: Context | None = None,
    ) -> asyncio.Task[Result]:
        """Have work done; whoever wants its result may await the task, shielded, and may go.

        Args:
            work: What to do.
            name: Of the task.
            context: An empty one where the work is not to be done in the name of the call that
                happens to begin it.
        """
        task = asyncio.create_task(work, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return heard(task)

    async def finish(self) -> None:
        """Return once everything that was begun has ended."""
        while pending := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(pending)

    def __len__(self) -> int:
        return len(self._tasks)

    async def cancel(self) -> None:
        """Break off everything that was begun; return once it has ended."""
        for task in self._tasks:
            task.cancel()
        await self.finish()


def heard(future: AnyFuture) -> AnyFuture:
    """Return the future, whose error is taken up though all who waited for it may be gone."""
    future.add_done_callback(_take_up)
    return future


def settle(future: asyncio.Future[None], error: JobwireError | None = None) -> None:
    """Set a future's result, or its error, whether or not anybody waits; harmless if it is done."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        # Looked at: nobody may be waiting for it.
        future.exception()


def _take_up(future: asyncio.Future[Any]) -> None:
    error = None if future.cancelled() else future.exception()
    # A refusal is for whoever waits; a defect must not go unseen if nobody does.
    if error is not None and not isinstance(error, JobwireError):
        log.error("work in the background failed", task=_name(future), exc_info=error)


def _name(future: object) -> str:
    return future.get_name() if isinstance(future, asyncio.Task) else type(future).__name__


def tell_unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Write what the loop has to complain of, for `loop.set_exception_handler`.

    Its own way shows the objects, with what callers sent in them.
    """
    error = context.get("exception")
    name = _name(context.get("task") or context.get("future"))
    log.error("unhandled in the event loop", what=context.get("message"), task=name, exc_info=error)

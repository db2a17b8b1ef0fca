"""Tasks that outlive whoever began them: each has an owner, which awaits it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from jobwire_server.domain.errors import JobwireError

log = structlog.get_logger(__name__)

Result = TypeVar("Result")
AnyFuture = TypeVar("AnyFuture", bound="asyncio.Future[Any]")


class Chores:
    """Work in the background."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, Result], name: str = "chore") -> asyncio.Task[Result]:
        """Have work done; whoever wants its result may await the task, shielded, and may go."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return heard(task)

    async def finish(self) -> None:
        """Return once everything that was begun has ended."""
        while pending := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(pending)


def heard(future: AnyFuture) -> AnyFuture:
    """Return the future, whose error is taken up though all who waited for it may be gone."""
    future.add_done_callback(_take_up)
    return future


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

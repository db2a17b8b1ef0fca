"""The event loop of a server process."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from jobwire_server.domain.background import tell_unhandled

Result = TypeVar("Result")

GC_THRESHOLDS = (20_000, 20, 50)
"""Objects made since the last look, and looks of one generation before one at the next."""


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, on uvloop where it exists."""
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        from uvloop import new_event_loop as new_loop
    except ImportError:  # it does not exist everywhere
        new_loop = None
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.get_loop().set_exception_handler(tell_unhandled)
        return runner.run(main)


async def unless(hurry: asyncio.Event | None, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, and drop it as soon as there is a hurry."""
    task = asyncio.ensure_future(work)
    waits: set[asyncio.Future[Any]] = {task}
    if hurry is not None:
        waits.add(asyncio.ensure_future(hurry.wait()))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            if not each.done():
                each.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    if not task.cancelled() and (error := task.exception()):
        raise error


def calm_the_collector() -> None:
    """Have the garbage collector run rarely, and freeze what was made during startup.

    A batch makes thousands of objects that live for milliseconds and hold no cycles; at Python's
    own thresholds a busy server spends a sixth of its time looking through them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)

"""The event loop of a server process."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from jobwire_server.chores import tell_unhandled

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
    """Has the garbage collector look seldom, and never again at what is there from the start.

    A batch makes thousands of objects that live for milliseconds and hold no cycles; at Python's
    own thresholds a busy server spends a sixth of its time looking through them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


LEFT_BEHIND_BYTES = 8 << 20
"""So much of what failed calls had sent may wait for the collector."""
YOUNG_LOOKS = 16
"""Looks at what is young between two at everything."""


class Refuse:
    """What failed calls leave behind: an error and the frames it went through hold each other, and
    with them the request. The collector counts objects, and a request of a megabyte is one.
    """

    def __init__(self) -> None:
        self._bytes = 0
        self._looks = 0

    def add(self, size: int) -> None:
        """A call that had sent so many bytes has failed."""
        self._bytes += size
        if self._bytes >= LEFT_BEHIND_BYTES:
            self._bytes = 0
            self._looks += 1
            gc.collect(2 if self._looks % YOUNG_LOOKS == 0 else 1)

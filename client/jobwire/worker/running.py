"""The starts and ends of a worker, whoever asks for them and from wherever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from jobwire.v1.worker_service_pb2 import StatusMetadata
from jobwire.worker import forks
from jobwire.worker.cancelling import this_task_is_cancelled
from jobwire.worker.held import WorkerStats
from jobwire.worker.life import Life
from jobwire.worker.stopping import Leaving, Signals

log = logging.getLogger("jobwire.worker")


class Running:
    """Lives one life of a worker after the other, each on one event loop.

    Args:
        prepare: Begins a life.
        grace_s: Tells how long jobs may keep running at its end, seconds; None: until they end.
    """

    def __init__(
        self,
        prepare: Callable[[], Coroutine[Any, Any, Life]],
        grace_s: Callable[[], float | None],
    ) -> None:
        self._prepare = prepare
        self._grace_s = grace_s
        self._life: Life | None = None
        self._last_stats = WorkerStats()
        self._told: StatusMetadata | None = None
        """What it tells of itself."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """The one that it runs on, from the beginning of its start to its end."""
        self._opening: asyncio.Task[Life] | None = None
        self._wanted: asyncio.Event | None = None
        """Set to end `serve`, while it runs."""
        self._leavings: list[Leaving] = []
        """Those who wait for its end."""
        self._chores: set[asyncio.Future[Any]] = set()

    @property
    def is_started(self) -> bool:
        """True from the end of its start to its end."""
        return self._life is not None

    @property
    def stats(self) -> WorkerStats:
        """What it has done since its last start."""
        return self._life.stats if self._life is not None else self._last_stats

    def tell(self, metadata: StatusMetadata) -> None:
        """Tell of the worker, now and in later lives; from any thread."""
        self._told = metadata
        loop = self._loop
        if loop is not None and not forks.is_child:
            # Where the loop is closed, the next life tells.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if self._life is not None and self._told is not None:
            self._life.tell(self._told)

    async def serve(self, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Work until a signal, `stop`, the broker's wish, or the task's cancellation.

        Args:
            start: Starts it.
        """
        self._enter()
        wanted = self._wanted = asyncio.Event()
        hurry = self._hurry

        def on_signal() -> None:
            if wanted.is_set():
                log.warning("told to stop again: running jobs are given back now")
                hurry.set()
            else:
                log.info("told to stop: finishing running jobs")
                wanted.set()

        starting = asyncio.create_task(start())
        stopping = asyncio.create_task(wanted.wait())
        try:
            with Signals(on_signal):
                tasks: set[asyncio.Task[Any]] = {starting, stopping}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if not starting.done():
                    return
                await starting
                assert self._life is not None
                await self._life.wait_for_end(stopping)
                await self._close()
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            self._wanted = None
            await self._close()

    async def start(self) -> None:
        """Begin a life, and return once the broker has taken the worker.

        Raises:
            RuntimeError: It runs on another event loop, or was stopped before it had started.
        """
        self._enter()
        self._last_stats = WorkerStats()
        opening = self._opening = asyncio.create_task(self._prepare(), name="worker-start")
        try:
            self._life = await opening
            self._tell()
        except asyncio.CancelledError:
            if this_task_is_cancelled():
                raise
            raise RuntimeError("the worker was stopped before it had started") from None
        finally:
            self._opening = None
            if self._life is None:
                opening.cancel()
                await asyncio.wait({opening})
                if self._wanted is None:
                    self._left(None)

    def stop(self, hurry: asyncio.Event | None) -> Leaving:
        """End the life that there is; see `Worker.stop`."""
        leaving, loop = Leaving(), self._loop
        try:
            if loop is None or forks.is_child:
                leaving.end()
            else:
                loop.call_soon_threadsafe(self._begin_to_stop, leaving, hurry)
        except RuntimeError:  # the loop was closed under the worker
            leaving.end()
        return leaving

    def _enter(self) -> None:
        """Take the running loop for the worker's own."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise RuntimeError("the worker is already running on another event loop")
        if self._loop is None:
            self._loop, self._hurry = loop, asyncio.Event()

    def _begin_to_stop(self, leaving: Leaving, hurry: asyncio.Event | None) -> None:
        if self._loop is None:
            leaving.end()  # it has ended meanwhile
            return
        self._leavings.append(leaving)
        if hurry is not None:
            passing_on = asyncio.ensure_future(_pass_on(hurry, self._hurry))
            self._chores.add(passing_on)
        if self._wanted is not None:
            self._wanted.set()  # serve() does the rest
        elif self._opening is not None:
            self._opening.cancel()
        else:
            self._chores.add(asyncio.ensure_future(self._close()))

    async def _close(self) -> None:
        """End the life that there is, and wait for it."""
        life = self._life
        if life is None or life.closing:
            if life is None and self._opening is None and self._wanted is None:
                self._left(None)
            return
        error: BaseException | None = None
        try:
            await life.close(self._grace_s(), self._hurry)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._last_stats, self._life = life.stats, None
            log.info("worker %s has left", life.worker_id)
            if self._wanted is None:
                self._left(error)

    def _left(self, error: BaseException | None) -> None:
        """Let go of the loop, and tell those who wait for the end."""
        self._loop = None
        chores, self._chores = self._chores, set()
        current = asyncio.current_task()
        for chore in chores:
            if chore is not current:
                chore.cancel()
        leavings, self._leavings = self._leavings, []
        for leaving in leavings:
            leaving.end(error)


async def _pass_on(one: asyncio.Event, other: asyncio.Event) -> None:
    await one.wait()
    other.set()

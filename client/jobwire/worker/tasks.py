"""Runs coroutines that mostly do not wait, without a task for each.

A task runs one coroutine after the other as long as they end without waiting. The first one that
waits keeps the task for itself, from its first step to its last, so that timeouts, task groups and
cancellation work as usual; another task continues with those behind it.
"""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar

from jobwire.worker import forks

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")

MOST_AT_ONCE = 100
"""At most this many outcomes are passed on together; then the loop has its turn."""
LONG_TURN_S = 0.05
"""After handlers that keep the loop for longer, the next one has to wait."""
CATCH_UP_S = 0.005
"""How long the loop then has for itself."""


class TaskPool(Generic[Job, Outcome]):
    """Runs jobs on the event loop.

    Args:
        run: Runs one job; what it raises ends its task and nothing else.
        waits: Called with a job that waits, and the task that it keeps from now on.
        ended: Takes jobs and their outcomes.
    """

    def __init__(
        self,
        run: Callable[[Job], Coroutine[Any, Any, Outcome]],
        waits: Callable[[Job, asyncio.Task[None]], None],
        ended: Callable[[Sequence[tuple[Job, Outcome]]], None],
    ) -> None:
        self._run = run
        self._waits = waits
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._ready: deque[Job] = deque()
        self._turns: set[_Turn[Job, Outcome]] = set()
        """Those that take jobs; one whose job waits does not any more."""
        self._width = 1
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, jobs: Iterable[Job]) -> None:
        """Start jobs in the loop's next turn, in their order."""
        self._ready.extend(jobs)
        self._go_on()

    def forget(self) -> None:
        """Drop what waits, in a forked child."""
        self._ready.clear()

    async def close(self, patience_s: float) -> None:
        """Cancel what runs, and wait a moment for it to end."""
        self._ready.clear()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=patience_s)

    def _go_on(self) -> None:
        while len(self._turns) < min(self._width, len(self._ready)):
            turn = _Turn(self)
            self._turns.add(turn)
            turn.task = self._loop.create_task(turn.run(), name="jobwire-handlers")
            self._tasks.add(turn.task)
            turn.task.add_done_callback(self._tasks.discard)

    def _leave(self, turn: _Turn[Job, Outcome], *, waits: bool) -> None:
        """Let other tasks take the jobs behind this one's."""
        if turn in self._turns:
            self._turns.discard(turn)
            # Where jobs wait, each needs a task, and it would take as many turns of the loop to
            # make them one after the other.
            self._width = min(2 * self._width, MOST_AT_ONCE) if waits else 1
            self._go_on()


class _Turn(Generic[Job, Outcome]):
    """One task, and what it has to tell."""

    def __init__(self, pool: TaskPool[Job, Outcome]) -> None:
        self._pool = pool
        self._done: list[tuple[Job, Outcome]] = []
        self._job: Job | None = None
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        pool, task = self._pool, self.task
        assert task is not None
        clock = self._pool._loop.time
        began = clock()
        try:
            while self in pool._turns and pool._ready:
                job = self._job = pool._ready.popleft()
                outcome = await _steps(pool._run(job), copy_context(), self._begins_to_wait)
                self._done.append((job, outcome))
                if task.cancelling():
                    # A handler that cancelled its own task; the next one must not hear of it.
                    return
                took_s = clock() - began
                if took_s > LONG_TURN_S or len(self._done) >= MOST_AT_ONCE:
                    self._tell()
                    # After handlers that blocked the loop, what waits on it takes several turns:
                    # to read a frame, to acknowledge it, to look at timers.
                    await asyncio.sleep(CATCH_UP_S if took_s > LONG_TURN_S else 0)
                    began = clock()
        finally:
            self._tell()
            pool._leave(self, waits=False)

    def _begins_to_wait(self) -> None:
        assert self._job is not None
        assert self.task is not None
        self._pool._waits(self._job, self.task)
        self._tell()
        self._pool._leave(self, waits=True)

    def _tell(self) -> None:
        if self._done:
            done, self._done = self._done, []
            self._pool._ended(done)


@types.coroutine
def _steps(
    coroutine: Coroutine[Any, Any, Any], context: Context, waits: Callable[[], None]
) -> Generator[Any, Any, Any]:
    """Drive a coroutine in a context of its own, as a task would, inside another task.

    Args:
        coroutine: Not begun.
        context: What its context variables are.
        waits: Called once, before its first wait.
    """
    run = context.run
    try:
        awaited = run(coroutine.send, None)
        if forks.is_child:
            # It would go on as a second worker, on its parent's connections.
            forks.end_child("an async operation", None)
        waits()
        while True:
            try:
                answer = yield awaited
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                awaited = run(coroutine.throw, error)
            else:
                awaited = run(coroutine.send, answer)
            if forks.is_child:
                forks.end_child("an async operation", None)
    except StopIteration as end:
        return end.value

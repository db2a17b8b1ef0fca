"""Runs handlers in threads, processes or tasks, and passes on their outcomes."""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from types import FrameType
from typing import Any, TypeAlias

from jobwire._capture import current_context
from jobwire._stop import StopReason
from jobwire.context import Context
from jobwire.v1.job_pb2 import Failure
from jobwire.v1.worker_service_pb2 import Completion
from jobwire.worker import forks
from jobwire.worker.handlers import Raised, call
from jobwire.worker.held import Held
from jobwire.worker.outcomes import success
from jobwire.worker.processes import ProcessPool
from jobwire.worker.tasks import TaskPool
from jobwire.worker.threads import ThreadPool

Outcome: TypeAlias = Completion | Failure | Raised
"""A result is a completion without job id and fencing token."""

# Cancelled tasks get this long to end; those that do not are left behind.
LAST_WORDS_S = 1.0


class Runner:
    """Threads, processes and tasks.

    Args:
        limit: The most handlers at once.
        ended: Takes jobs and their outcomes, on the event loop.
        processes: For handlers in processes; ended with the rest.
    """

    def __init__(
        self,
        limit: int,
        ended: Callable[[Sequence[tuple[Held, Outcome]]], None],
        processes: ProcessPool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._processes = processes
        self._threads: ThreadPool[Held, Outcome] = ThreadPool(
            limit, _thread_name, self._run_in_thread, ended
        )
        self._tasks: TaskPool[Held, Outcome] = TaskPool(self._run_as_task, _has_a_task, ended)
        forks.watch(self)

    def forget_in_child(self) -> None:
        """Drop what waits, in a forked child."""
        self._threads.forget()
        self._tasks.forget()

    def start(self, jobs: Iterable[Held]) -> None:
        """Start the handlers of jobs."""
        for_threads: list[Held] = []
        for_tasks: list[Held] = []
        for held in jobs:
            operation = held.operation
            is_for_threads = operation is not None and operation.mode == "thread"
            (for_threads if is_for_threads else for_tasks).append(held)
        if for_threads:
            self._threads.submit(for_threads)
        if for_tasks:
            self._tasks.submit(for_tasks)

    def stop(self, held: Held, reason: StopReason, message: str = "") -> None:
        """Tell a handler to stop."""
        held.signal.set(reason, message)
        is_async = held.operation is not None and held.operation.mode == "async"
        # One that has not begun checks the signal when it does.
        if is_async and held.task is not None:
            held.task.cancel()

    async def close(self) -> None:
        """End what runs, as far as it can be ended."""
        await self._tasks.close(LAST_WORDS_S)
        self._threads.close()
        await self._processes.close()

    def _run_in_thread(self, held: Held) -> Outcome:
        assert held.operation is not None
        context = Context(held.assignment, held)
        current_context.set(context)
        result = call(held.operation.function, context)
        if forks.is_child:
            end_of_child(held, result.error if isinstance(result, Raised) else None)
        if isinstance(result, Raised):
            return result
        outcome = success(result)
        if isinstance(outcome, Failure) and inspect.isawaitable(result):
            # An async function behind a decorator that is not async.
            return self._await_in_thread(held, result)
        return outcome

    def _await_in_thread(self, held: Held, result: Awaitable[Any]) -> Outcome:
        """Run what a handler returned on the loop, while its thread waits."""

        async def run() -> Any:
            try:
                return await result
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                return Raised(error)  # some of them would end the loop

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)

        def cancel() -> None:
            future.cancel()

        held.signal.on_set = cancel
        if held.signal.is_set:
            future.cancel()  # told to stop in between
        try:
            returned = future.result()
        except CancelledError:
            return Raised(asyncio.CancelledError())
        return returned if isinstance(returned, Raised) else success(returned)

    async def _run_as_task(self, held: Held) -> Outcome:
        context = Context(held.assignment, held)
        current_context.set(context)
        try:
            if held.signal.reason:
                raise asyncio.CancelledError  # told to stop before the first step
            operation = held.operation
            if operation is None:
                name = held.assignment.spec.operation
                raise LookupError(f"this worker has no handler for {name!r}")
            if operation.mode == "async":
                result = await operation.function(context)
                if forks.is_child:
                    end_of_child(held, None)
                return success(result)
            return success(await self._processes.run(operation.function, held.assignment, held))
        except KeyboardInterrupt as error:
            # If nobody handles SIGINT, it is meant for the program, not the handler.
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                raise
            return Raised(error)
        except asyncio.CancelledError as error:
            if not held.signal.is_set and held.task is not None and held.task.cancelling():
                raise  # the loop ends, and says so to all its tasks
            return Raised(error)
        except BaseException as error:
            if forks.is_child:
                end_of_child(held, error)
            return Raised(error)


def held_in(frame: FrameType | None) -> Held | None:
    """Find the job whose handler a thread's frame belongs to; from any thread."""
    while frame is not None:
        if frame.f_code in _HANDLERS:
            held = frame.f_locals.get("held")
            return held if isinstance(held, Held) else None
        frame = frame.f_back
    return None


def where(frame: FrameType) -> str:
    """Return where a handler stands: in its own code, and in what that calls."""
    inner, own = frame, frame
    at: FrameType | None = frame
    while at is not None and at.f_code not in _HANDLERS:
        if at.f_code is not call.__code__:
            own = at
        at = at.f_back
    return f"at {_place(own)}" + (f", in {_place(inner)}" if inner is not own else "")


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"


_HANDLERS = frozenset({Runner._run_in_thread.__code__, Runner._run_as_task.__code__})


def end_of_child(held: Held, error: BaseException | None) -> None:
    """End a forked child that comes back from a handler."""
    forks.end_child(held.assignment.spec.operation, error)


def _has_a_task(held: Held, task: asyncio.Task[None]) -> None:
    held.task = task


def _thread_name(held: Held) -> str:
    return f"jobwire-{held.job_id}"

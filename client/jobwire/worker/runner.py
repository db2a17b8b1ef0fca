"""Runs handlers, each in the way that it asks for, and tells what they made of their jobs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeAlias

from jobwire.context import Context, Report, StopReason
from jobwire.output import OutputLog, current_context
from jobwire.v1.job_pb2 import Failure, Payload, Progress
from jobwire.v1.worker_service_pb2 import Completion
from jobwire.worker.handlers import Raised, call
from jobwire.worker.held import Held
from jobwire.worker.outcomes import success
from jobwire.worker.processes import Line, ProcessPool
from jobwire.worker.tasks import TaskPool
from jobwire.worker.threads import ThreadPool

Outcome: TypeAlias = Completion | Failure | Raised
"""A result comes as the job's completion, but for the names of job and lease."""

# Cancelled tasks get so long for their last words; what does not heed them is left behind.
LAST_WORDS_S = 1.0


class Runner:
    """Threads, processes and tasks.

    Args:
        limit: The most handlers at once.
        report: Takes progress, from any thread.
        output: Is told of output, from any thread; True: it is urgent.
        save: Has a checkpoint saved, from any thread; what it returns is done when it is.
        ended: Takes jobs and their outcomes, on the event loop.
    """

    def __init__(
        self,
        limit: int,
        report: Callable[[Held, Progress], None],
        output: Callable[[Held, bool], None],
        save: Callable[[Held, Payload], Future[None]],
        ended: Callable[[Sequence[tuple[Held, Outcome]]], None],
    ) -> None:
        self._report = report
        self._output = output
        self._save = save
        self._opening = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._processes = ProcessPool()
        self._threads: ThreadPool[Held, Outcome] = ThreadPool(
            limit, _thread_name, self._run_in_thread, ended
        )
        self._tasks: TaskPool[Held, Outcome] = TaskPool(self._run_as_task, _has_a_task, ended)

    def start(self, jobs: Iterable[Held]) -> None:
        """Starts the handlers of jobs."""
        for_threads: list[Held] = []
        for_tasks: list[Held] = []
        for held in jobs:
            held.context = self._context(held)
            is_for_threads = held.operation is not None and held.operation.mode == "thread"
            (for_threads if is_for_threads else for_tasks).append(held)
        if for_threads:
            self._threads.submit(for_threads)
        if for_tasks:
            self._tasks.submit(for_tasks)

    def stop(self, held: Held, reason: StopReason, message: str = "") -> None:
        """Tells a handler to stop."""
        held.signal.set(reason, message)
        is_async = held.operation is not None and held.operation.mode == "async"
        # One that has not begun looks at the signal when it does.
        if is_async and held.task is not None:
            held.task.cancel()

    async def close(self) -> None:
        """Ends what runs, as far as it can be ended."""
        await self._tasks.close(LAST_WORDS_S)
        self._threads.close()
        await self._processes.close()

    def _context(self, held: Held) -> Context:
        def report(made: Report) -> None:
            self._report(held, made.to_proto())

        return Context(
            held.assignment,
            report=report,
            signal=held.signal,
            output=partial(self._output_log, held),
            save=partial(self._save, held),
            ends_at=held.ends_at,
        )

    def _output_log(self, held: Held) -> OutputLog:
        # Several threads of a handler may write their first piece at once.
        with self._opening:
            if held.output is None:
                log = OutputLog(partial(self._output, held), lambda: held.signal.is_set)
                if held.void:
                    log.close()
                held.output = log
            return held.output

    def _run_in_thread(self, held: Held) -> Outcome:
        assert held.operation is not None
        assert held.context is not None
        current_context.set(held.context)
        result = call(held.operation.function, held.context)
        return result if isinstance(result, Raised) else success(result)

    async def _run_as_task(self, held: Held) -> Outcome:
        assert held.context is not None
        current_context.set(held.context)
        try:
            return await self._outcome(held, held.context)
        except KeyboardInterrupt:
            raise
        except asyncio.CancelledError as error:
            if not held.signal.is_set and held.task is not None and held.task.cancelling():
                raise  # the loop ends, and says so to all its tasks
            return Raised(error)
        except BaseException as error:
            return Raised(error)

    async def _outcome(self, held: Held, context: Context) -> Outcome:
        operation = held.operation
        if held.signal.is_set:
            raise asyncio.CancelledError  # told to stop before the first step
        if operation is None:
            name = held.assignment.spec.operation
            raise LookupError(f"this worker has no handler for {name!r}")
        if operation.mode == "async":
            return success(await operation.function(context))
        line = Line(
            report=partial(self._report, held),
            stop=held.signal,
            output=partial(self._output_log, held),
            save=partial(self._save, held),
        )
        run = self._processes.run(operation.function, held.assignment, held.ends_at, line)
        return success(await run)


def _has_a_task(held: Held, task: asyncio.Task[None]) -> None:
    held.task = task


def _thread_name(held: Held) -> str:
    return f"jobwire-{held.job_id}"

"""The pool of a worker's processes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

import grpc

from jobwire._stop import StopSignal
from jobwire.errors import CallError
from jobwire.output import OutputLog
from jobwire.signals import Stopped
from jobwire.v1.job_pb2 import Failure, Payload, Progress
from jobwire.v1.worker_service_pb2 import Assignment, Completion
from jobwire.worker.handlers import Handler
from jobwire.worker.outcomes import HandlerFailure
from jobwire.worker.processes.keeping import Keeper
from jobwire.worker.processes.logs import log_here
from jobwire.worker.processes.messages import Message, ProcessOutcome
from jobwire.worker.processes.options import ProcessOptions
from jobwire.worker.processes.process import TERM_S, HandlerProcess
from jobwire.worker.processes.setup import ProcessStartFailed, Setup, pickled

log = logging.getLogger("jobwire.worker")

# How long after the signal to stop a handler's group is killed; SIGTERM comes TERM_S before.
KILL_AFTER_S = 5.0
# How long a process that is no longer needed may take to exit.
LEAVE_S = 2.0


class ProcessDied(RuntimeError):
    """The process of a handler ended under it."""


class ParentLink(Protocol):
    """A handler's `Link` as its worker's own process sees it: progress has its form already."""

    @property
    def signal(self) -> StopSignal:
        """Tell the handler to stop."""

    @property
    def ends_at(self) -> float | None:
        """When it is stopped at the latest, in Unix seconds; None: never."""

    def take_progress(self, progress: Progress) -> None:
        """Take progress; on the event loop."""

    def open_log(self) -> OutputLog:
        """Return the log of the job's output, always the same one."""

    def save(self, payload: Payload) -> Future[None]:
        """Save a checkpoint; the future is done when the broker has it."""


class ProcessPool:
    """Starts processes as they are needed; each waits for the next handler afterwards."""

    def __init__(self, options: ProcessOptions | None = None) -> None:
        self._options = options or ProcessOptions()
        self._functions: tuple[Handler, ...] = ()
        self._keeper = Keeper()
        self._idle: list[HandlerProcess] = []
        self._all: set[HandlerProcess] = set()
        self._ahead: deque[asyncio.Task[HandlerProcess]] = deque()
        """Started before they are needed."""

    @property
    def processes(self) -> Collection[HandlerProcess]:
        """Its processes, those that are starting included."""
        return self._all

    async def prepare(self, functions: Iterable[Handler]) -> None:
        """Start a process, so that an error that keeps handlers from running is known at once.

        Args:
            functions: The handlers; none: nothing is started.

        Raises:
            ProcessStartFailed: A process can't be started, or can't import them.
        """
        self._functions = tuple(functions)
        if self._functions:
            self._idle.append(await self._start())

    async def run(
        self,
        function: Handler,
        assignment: Assignment,
        link: ParentLink,
    ) -> Payload:
        """Run a handler and return its result.

        Args:
            function: The handler.
            assignment: Its job.
            link: To the worker's core.

        Raises:
            HandlerFailure: It failed.
            Stopped: It heeded the signal, or was killed for not doing so.
            ProcessDied: Its process ended by itself.
            ProcessStartFailed: There is no process for it.
        """
        stop, named = link.signal, pickled(function)
        child = await self._take(stop)
        outcome: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        child.on_message = partial(self._hear, child, assignment, link, outcome)
        if child.dead:
            # Perhaps before on_message was set: the news may have gone to the last handler's.
            _set(outcome, ("died", child.ended.result()))
        timers: list[asyncio.TimerHandle] = []

        def pass_on() -> None:
            child.send(("stop", (stop.reason, stop.message)))
            if not timers:
                loop = asyncio.get_running_loop()
                timers.append(loop.call_later(KILL_AFTER_S - TERM_S, child.terminate))
                timers.append(loop.call_later(KILL_AFTER_S, child.kill))

        child.jobs += 1
        if child.jobs == self._options.max_jobs:
            self._start_ahead()
        try:
            job = (named, assignment.SerializeToString(), link.ends_at)
            await asyncio.to_thread(child.send, ("run", job))
            stop.on_set = pass_on
            if stop.is_set:
                pass_on()
            kind, content = await outcome
        except BaseException:
            child.kill()
            raise
        finally:
            stop.on_set = None
            for timer in timers:
                timer.cancel()
        if kind == "died":
            if stop.is_set:
                raise Stopped("killed after it did not stop")
            raise ProcessDied(f"the handler's process {content}")
        ended = ProcessOutcome(*content)
        if stop.is_set and child.was_terminated and ended.kind == "failure":
            # Its error comes from the end of its programs.
            self._retire(child)
            raise Stopped("its programs were ended after it did not stop")
        self._put_back(child, assignment.job_id, ended)
        return _result(ended)

    def _hear(
        self,
        child: HandlerProcess,
        assignment: Assignment,
        link: ParentLink,
        outcome: asyncio.Future[Message],
        message: Message,
    ) -> None:
        """Take what a process says, in its thread."""
        kind, content = message
        if kind == "output":
            # Waits for room: then the pipe fills, and with it the handler's own buffer.
            output = link.open_log()
            output.on_full = partial(child.send, ("full", None))
            for data, channel, is_text in content:
                output.write(data, channel, is_text=is_text, wait=True)
        elif kind == "checkpoint":
            number, payload = content
            saved = link.save(Payload.FromString(payload))
            saved.add_done_callback(
                lambda saved: child.send(("saved", (number, _refusal(saved.exception()))))
            )
        elif kind == "log":
            log_here(content, assignment)
        elif kind == "report":
            _on_loop(outcome, link.take_progress, Progress.FromString(content))
        else:
            _on_loop(outcome, _set, outcome, message)

    # Which process.

    async def _take(self, stop: StopSignal) -> HandlerProcess:
        """Take a live idle process, or start one.

        A process that died meanwhile, for lack of memory for instance, does not fail the next job.

        Raises:
            Stopped: The job's handler is not to start any more.
            ProcessStartFailed: It did not start.
        """
        while self._idle:
            child = self._idle.pop()
            if not child.dead:
                return child
        if not self._ahead:
            self._start_ahead()
        starting = self._ahead.popleft()
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[None] = loop.create_future()

        def on_stop() -> None:
            if not stopped.done():
                stopped.set_result(None)

        stop.on_set = on_stop
        if stop.is_set:
            on_stop()
        try:
            either: set[asyncio.Future[Any]] = {starting, stopped}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.on_set = None
            if not starting.done():
                self._ahead.append(starting)  # for the next one
        if not starting.done():
            raise Stopped("told to stop before its process had started")
        return starting.result()

    def _start_ahead(self) -> None:
        self._ahead.append(asyncio.get_running_loop().create_task(self._start()))

    async def _start(self) -> HandlerProcess:
        setup = Setup.of_this_process(self._functions, end_children=self._options.end_children)
        child = HandlerProcess(setup, self._keeper)
        self._all.add(child)
        child.ended.add_done_callback(lambda _: self._all.discard(child))
        ready = asyncio.wrap_future(child.ready)
        # Nobody may be left to hear of it, as when the worker ends meanwhile.
        ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(self._options.start_timeout_s):
                await asyncio.shield(ready)
        except TimeoutError:
            child.kill()
            raise ProcessStartFailed(
                "a process for handlers was not ready after"
                f" {self._options.start_timeout_s:g} s: do the handlers' modules take long to"
                " import, or wait for something? ProcessOptions.start_timeout_s sets the limit"
            ) from None
        except BaseException:
            child.kill()
            raise
        return child

    def _put_back(self, child: HandlerProcess, job_id: str, ended: ProcessOutcome) -> None:
        """Keep a process for the next job, or replace it."""
        options = self._options
        if ended.left:
            log.warning(
                "%s left processes running: %s; they are ended, and the handler's process is"
                " replaced",
                job_id,
                ", ".join(ended.left),
            )
            child.terminate()
            self._retire(child)
        elif child.was_terminated or child.jobs == options.max_jobs:
            self._retire(child)
        elif options.max_memory_bytes is not None and ended.memory_bytes > options.max_memory_bytes:
            log.info(
                "a handler's process holds %d MiB after %d jobs; it is replaced",
                ended.memory_bytes >> 20,
                child.jobs,
            )
            self._retire(child)
        else:
            self._idle.append(child)

    def _retire(self, child: HandlerProcess) -> None:
        """Let a process go, and have another one ready for the next job."""
        if child.jobs != self._options.max_jobs:
            self._start_ahead()  # else it was with the process's last job
        child.send(("end", None))
        asyncio.get_running_loop().call_later(LEAVE_S, child.kill)

    async def close(self) -> None:
        """End all processes, and what is in their groups."""
        for starting in self._ahead:
            starting.cancel()
        await asyncio.gather(*self._ahead, return_exceptions=True)
        self._ahead.clear()
        children, idle = list(self._all), self._idle
        self._all, self._idle = set(), []
        for child in children:
            if child in idle:
                child.send(("end", None))
            else:
                child.terminate()
        ends = [asyncio.wrap_future(child.ended) for child in children]
        if ends:
            await asyncio.wait(ends, timeout=LEAVE_S)
            for child in children:
                child.kill()
            _, pending = await asyncio.wait(ends, timeout=KILL_AFTER_S)
            if pending:
                # For instance one that waits for a disk or a device.
                log.error("%d processes of handlers did not end and were killed", len(pending))
        await asyncio.to_thread(self._keeper.close)


def _result(ended: ProcessOutcome) -> Payload:
    if ended.kind == "stopped":
        raise Stopped(ended.content)
    assert isinstance(ended.content, bytes)
    if ended.kind != "success":
        described = Failure.FromString(ended.content)
        raise HandlerFailure(described, deliberate=ended.kind == "deliberate")
    return Completion.FromString(ended.content).success.result


def _set(outcome: asyncio.Future[Message], message: Message) -> None:
    if not outcome.done():
        outcome.set_result(message)


def _on_loop(
    outcome: asyncio.Future[Message], call: Callable[..., None], *arguments: object
) -> None:
    try:
        outcome.get_loop().call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        return  # the loop is closed


def _refusal(error: BaseException | None) -> tuple[grpc.StatusCode, str, str] | None:
    """Return what goes over the pipe about a failed saving."""
    if error is None:
        return None
    if isinstance(error, CallError):
        return error.code, error.message, error.reason
    return grpc.StatusCode.UNKNOWN, str(error), ""

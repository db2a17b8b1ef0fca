"""Handlers in processes of their own, for CPU work.

Each process runs one handler at a time and is used again. Over its pipe go the assignment and
the signal to stop one way, progress, checkpoints and the outcome the other. A handler that does
not heed the signal is killed with its process.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import grpc

from jobwire.context import Context, Report, StopSignal, Wires
from jobwire.errors import CallError, call_error
from jobwire.output import OutputLog, current_context
from jobwire.signals import Stopped
from jobwire.v1.job_pb2 import Failure, Payload, Progress
from jobwire.v1.worker_service_pb2 import Assignment, Completion
from jobwire.worker.handlers import Handler
from jobwire.worker.outcomes import HandlerFailure, failure, success

KILL_AFTER_S = 5.0
_FLUSH_S = 0.05

# A kind and its content; the contents are serialized messages.
_Message: TypeAlias = tuple[str, Any]


class ProcessDied(RuntimeError):
    """The process of a handler ended under it."""


class _Child:
    """A process and the thread that listens to it."""

    def __init__(self) -> None:
        # A forked copy of a process with gRPC threads may hang; a spawned one starts afresh.
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        self._send_lock = threading.Lock()
        self.dead = False
        self.on_message: Callable[[_Message], None] = lambda message: None
        self._reader = threading.Thread(target=self._read, name="jobwire-process", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while True:
                # In two steps: who is to get it may change while recv waits.
                message = self._pipe.recv()
                self.on_message(message)
        except (EOFError, OSError):
            self._process.join()
            self.dead = True
            self.on_message(("died", self.exitcode))

    def send(self, message: _Message) -> None:
        try:
            with self._send_lock:
                self._pipe.send(message)
        except OSError:
            return  # it died; the reader tells

    @property
    def exitcode(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self.kill()
        self._reader.join()
        self._pipe.close()
        self._process.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A handler's line to the worker's core; each may be called from any thread."""

    report: Callable[[Progress], None]
    stop: StopSignal
    output: Callable[[], OutputLog]
    save: Callable[[Payload], Future[None]]


class ProcessPool:
    """Starts processes as they are needed; each waits for the next handler afterwards."""

    def __init__(self) -> None:
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()

    async def run(
        self,
        function: Handler,
        assignment: Assignment,
        ends_at: float | None,
        line: Line,
    ) -> Payload:
        """Runs a handler and returns its result.

        Args:
            function: The handler.
            assignment: Its job.
            ends_at: When it is stopped at the latest, Unix seconds.
            line: To the worker's core.

        Raises:
            HandlerFailure: It failed.
            Stopped: It heeded the signal, or was killed for not doing so.
            ProcessDied: Its process ended by itself.
        """
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[_Message] = loop.create_future()
        stop = line.stop

        def receive(message: _Message) -> None:
            kind, content = message
            if kind == "report":
                line.report(Progress.FromString(content))
            elif not outcome.done():
                outcome.set_result(message)

        def from_reader(message: _Message) -> None:
            if message[0] == "output":
                # In the reader's thread, which waits for room: then the pipe fills, and with it
                # the handler's own buffer.
                log = line.output()
                log.on_full = partial(child.send, ("full", None))
                for data, channel, is_text in message[1]:
                    log.write(data, channel, is_text=is_text, wait=True)
                return
            if message[0] == "checkpoint":
                number, payload = message[1]
                saved = line.save(Payload.FromString(payload))
                saved.add_done_callback(
                    lambda saved: child.send(("saved", (number, _refusal(saved.exception()))))
                )
                return
            try:
                loop.call_soon_threadsafe(receive, message)
            except RuntimeError:
                return  # the loop is closed

        child = await self._take()
        self._all.add(child)
        child.on_message = from_reader
        if child.dead:
            # Perhaps before on_message was set: the news may have gone to the last handler's.
            receive(("died", child.exitcode))
        killer: list[asyncio.TimerHandle] = []

        def pass_on() -> None:
            child.send(("stop", (stop.reason, stop.message)))
            killer.append(loop.call_later(KILL_AFTER_S, child.kill))

        try:
            job = (pickle.dumps(function), assignment.SerializeToString(), ends_at)
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
            for timer in killer:
                timer.cancel()
        if kind == "died":
            self._all.discard(child)
            await asyncio.to_thread(child.close)
            if stop.is_set:
                raise Stopped("killed after it did not stop")
            raise ProcessDied(f"the handler's process ended with exit code {content}")
        self._idle.append(child)
        if kind == "stopped":
            raise Stopped(content)
        if kind == "failure":
            raise HandlerFailure(Failure.FromString(content))
        return Completion.FromString(content).success.result

    async def _take(self) -> _Child:
        """Takes a process that waits and lives, or starts one.

        One that died meanwhile, for want of memory for instance, is not the next job's failure.
        """
        while self._idle:
            child = self._idle.pop()
            if not child.dead:
                return child
            self._all.discard(child)
            await asyncio.to_thread(child.close)
        return await asyncio.to_thread(_Child)

    async def close(self) -> None:
        """Ends all processes."""
        children, self._all, self._idle = self._all, set(), []
        for child in children:
            await asyncio.to_thread(child.close)


def _serve(pipe: Connection) -> None:
    """The other side: the main thread runs handlers, a second one listens."""
    # A terminal's Ctrl-C and a service manager's SIGTERM reach the whole group; the worker
    # decides how long a handler may go on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _HandlerProcess(pipe).serve()


class _HandlerProcess:
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._send_lock = threading.Lock()
        self._jobs: queue.Queue[tuple[bytes, bytes, float | None]] = queue.Queue()
        self._stop = StopSignal()
        self._newest: Progress | None = None
        self._output = self._new_log()
        self._busy = threading.Event()
        self._numbers = itertools.count()
        self._savings: dict[int, Future[None]] = {}
        """Checkpoints that the worker has not answered yet."""

    def serve(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            outcome = self._run(*self._jobs.get())
            self._busy.clear()
            self._flush()
            self._send(outcome)

    def _listen(self) -> None:
        try:
            while True:
                if self._pipe.poll(_FLUSH_S if self._busy.is_set() else None):
                    self._receive(self._pipe.recv())
                self._flush()
        except (EOFError, OSError):
            os._exit(1)  # the worker is gone, and with it the lease

    def _receive(self, message: _Message) -> None:
        kind, content = message
        if kind == "stop":
            self._stop.set(*content)
            return
        if kind == "full":
            self._output.fill()
            return
        if kind == "saved":
            number, refused = content
            saved = self._savings.pop(number)
            if refused is None:
                saved.set_result(None)
            else:
                code, words, reason = refused
                saved.set_exception(call_error(code, words, reason=reason))
            return
        self._stop = StopSignal()
        self._output = self._new_log()
        self._busy.set()
        self._jobs.put(content)

    def _run(self, pickled: bytes, assignment: bytes, ends_at: float | None) -> _Message:
        context = Context(
            Assignment.FromString(assignment),
            Wires(
                signal=self._stop,
                report=self._keep_newest,
                open_log=lambda: self._output,
                save=self._save,
                ends_at=ends_at,
            ),
        )
        current_context.set(context)
        try:
            function: Handler = pickle.loads(pickled)  # imports its module
            outcome = success(function(context))
        except Stopped as error:
            return "stopped", str(error)
        except BaseException as error:
            return "failure", failure(error).SerializeToString()
        kind = "success" if isinstance(outcome, Completion) else "failure"
        return kind, outcome.SerializeToString()

    def _keep_newest(self, report: Report) -> None:
        self._newest = report.to_proto()

    def _save(self, payload: Payload) -> Future[None]:
        saved: Future[None] = Future()
        saved.set_running_or_notify_cancel()
        number = next(self._numbers)
        self._savings[number] = saved
        self._send(("checkpoint", (number, payload.SerializeToString())))
        return saved

    def _flush(self) -> None:
        with self._send_lock:
            newest, self._newest = self._newest, None
            if newest is not None:
                self._pipe.send(("report", newest.SerializeToString()))
            while chunks := self._output.take():
                pieces = [
                    (chunk.text.encode() or chunk.data, chunk.channel, chunk.HasField("text"))
                    for chunk in chunks
                ]
                self._pipe.send(("output", pieces))
                self._output.recorded()

    def _new_log(self) -> OutputLog:
        stop = self._stop
        return OutputLog(self._output_came, lambda: stop.is_set)

    def _output_came(self, urgent: bool) -> None:
        # In the handler's thread; what is not urgent goes with the listener's next look.
        if urgent:
            self._flush()

    def _send(self, message: _Message) -> None:
        with self._send_lock:
            self._pipe.send(message)


def _refusal(error: BaseException | None) -> tuple[grpc.StatusCode, str, str] | None:
    """What of a failed saving goes over the pipe."""
    if error is None:
        return None
    if isinstance(error, CallError):
        return error.code, error.message, error.reason
    return grpc.StatusCode.UNKNOWN, str(error), ""

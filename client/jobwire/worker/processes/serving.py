"""The process of a handler: its main thread runs handlers, a second one listens to the worker."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import itertools
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection

from jobwire import _children
from jobwire._capture import current_context
from jobwire._link import AssembledLink, Report
from jobwire._stop import StopSignal
from jobwire.context import Context
from jobwire.errors import call_error
from jobwire.output import OutputLog
from jobwire.signals import Fatal, Retry, Stopped
from jobwire.v1.job_pb2 import Failure, Payload, Progress
from jobwire.v1.worker_service_pb2 import Assignment, Completion
from jobwire.worker.handlers import Handler, Raised, call
from jobwire.worker.outcomes import failure, success
from jobwire.worker.processes.groups import Memory, helpers, processes
from jobwire.worker.processes.logs import ToWorker
from jobwire.worker.processes.messages import Message, OutcomeKind
from jobwire.worker.processes.setup import Setup

_FLUSH_S = 0.05
_PR_SET_CHILD_SUBREAPER = 36
# How long processes that are about to end have before they count as left running.
_LAST_STEPS_S = 0.2
_LOOK_S = 0.02


def serve(pipe: Connection) -> None:
    """Run handlers until the worker wants no more; a process begins here."""
    _fill_standard_streams()
    _take_signals()
    try:
        setup: Setup = pipe.recv()
    except (EOFError, OSError):
        return  # the worker was killed meanwhile
    process = _HandlerProcess(pipe, setup)
    process.prepare()
    process.serve()


class _HandlerProcess:
    def __init__(self, pipe: Connection, setup: Setup) -> None:
        self._pipe = pipe
        self._setup = setup
        self._pid = os.getpid()
        self._memory = Memory()
        self._send_lock = threading.Lock()
        self._jobs: queue.Queue[tuple[bytes, bytes, float | None] | None] = queue.Queue()
        self._stop = StopSignal()
        self._newest: Progress | None = None
        self._output = self._new_log()
        self._busy = threading.Event()
        self._numbers = itertools.count()
        self._savings: dict[int, Future[None]] = {}
        """Checkpoints that the worker has not answered yet."""
        os.register_at_fork(after_in_child=self._leave_to_parent)

    def prepare(self) -> None:
        """Import the handlers, and tell whether that worked."""
        threading.Thread(target=self._listen, name="jobwire-listener", daemon=True).start()
        _children.told_of_refusals = lambda words: self._send(("unfit", words))
        with suppress(Exception):
            faulthandler.enable()
        _adopt_orphans()
        logging.root.addHandler(ToWorker(lambda record: self._send(("log", record))))
        self._setup.log_levels.apply()
        sys.argv[:] = self._setup.arguments
        if self._setup.start_method is not None:
            multiprocessing.set_start_method(self._setup.start_method, force=True)
        try:
            if self._setup.main is not None:
                self._setup.main.import_again()
            for function in self._setup.functions:
                pickle.loads(function)  # imports its module
        except BaseException as error:
            described = failure(error)
            self._send(("unfit", f"{described.type}: {described.message}\n{described.stack}"))
            raise SystemExit(1) from None
        self._send(("ready", None))

    def serve(self) -> None:
        """Run one handler after the other."""
        while (job := self._jobs.get()) is not None:
            kind, content = self._run(*job)
            if os.getpid() != self._pid:
                # A child that the handler forked has returned from it; its parent speaks for both.
                os._exit(0)
            left = self._left_running() if self._setup.end_children else ()
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            self._busy.clear()
            self._flush()
            self._send(("ended", (kind, content, left, self._memory.resident_bytes())))

    def _listen(self) -> None:
        try:
            while True:
                if self._pipe.poll(_FLUSH_S if self._busy.is_set() else None):
                    self._receive(self._pipe.recv())
                elif os.getppid() != self._setup.worker:
                    break  # while a forked child of it holds the other end
                self._flush()
        except EOFError:
            pass
        except OSError as error:
            if error.errno == errno.EBADF:
                return  # the handler has closed it; the worker says so, and ends this process
        _end_group()

    def _receive(self, message: Message) -> None:
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
        if kind == "end":
            self._jobs.put(None)
            return
        self._stop = StopSignal()
        self._output = self._new_log()
        self._busy.set()
        self._jobs.put(content)

    def _run(
        self, function: bytes, assignment: bytes, ends_at: float | None
    ) -> tuple[OutcomeKind, bytes | str]:
        context = Context(
            Assignment.FromString(assignment),
            AssembledLink(
                signal=self._stop,
                report=self._keep_newest,
                open_log=lambda: self._output,
                save=self._save,
                ends_at=ends_at,
            ),
        )
        current_context.set(context)
        try:
            handler: Handler = pickle.loads(function)
            result = call(handler, context)
            if isinstance(result, Raised) and isinstance(result.error, Stopped):
                return "stopped", str(result.error)
            if isinstance(result, Raised) and isinstance(result.error, Retry | Fatal):
                return "deliberate", _described(result.error).SerializeToString()
            outcome = _described(result.error) if isinstance(result, Raised) else success(result)
        except BaseException as error:
            outcome = _described(error)
        finally:
            current_context.set(None)
        kind: OutcomeKind = "success" if isinstance(outcome, Completion) else "failure"
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
                self._write(("report", newest.SerializeToString()))
            while chunks := self._output.take():
                pieces = [
                    (chunk.text.encode() or chunk.data, chunk.channel, chunk.HasField("text"))
                    for chunk in chunks
                ]
                self._write(("output", pieces))
                self._output.recorded()

    def _new_log(self) -> OutputLog:
        stop = self._stop
        return OutputLog(self._output_came, lambda: stop.is_set)

    def _output_came(self, urgent: bool) -> None:
        # In the handler's thread; what is not urgent goes with the listener's next look.
        if urgent:
            self._flush()

    def _send(self, message: Message) -> None:
        with self._send_lock:
            self._write(message)

    def _write(self, message: Message) -> None:
        try:
            self._pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            _end_group()

    def _left_running(self) -> tuple[str, ...]:
        """Return the processes that the handler started and left running, in words."""
        if not _has_children():
            return ()
        group, me = os.getpgrp(), os.getpid()
        end_s = time.monotonic() + _LAST_STEPS_S
        while True:
            ours = [one for one in processes() if one.group == group and one.pid != me]
            living = [one for one in ours if not one.is_zombie and one.pid not in helpers()]
            if not living or time.monotonic() > end_s:
                break
            time.sleep(_LOOK_S)
        for one in ours:
            if one.is_zombie and one.parent == me:
                with suppress(ChildProcessError):
                    os.waitpid(one.pid, os.WNOHANG)
        return tuple(map(str, living))

    def _leave_to_parent(self) -> None:
        """Undo, in a child that a handler forked, what only the handler's process needs."""
        self._pipe.close()
        self._send_lock = threading.Lock()
        for number, own in (
            (signal.SIGTERM, signal.SIG_DFL),
            (signal.SIGINT, signal.default_int_handler),
        ):
            if signal.getsignal(number) is _not_now:
                signal.signal(number, own)
        for handler in list(logging.root.handlers):
            if isinstance(handler, ToWorker):
                logging.root.removeHandler(handler)
                logging.root.addHandler(logging.StreamHandler())


def _end_group() -> None:
    """End this process and what it has started: the worker is gone, and with it the lease."""
    os.killpg(0, signal.SIGKILL)


def _described(error: BaseException) -> Failure:
    # A job must end whatever the exceptions of its handler do.
    try:
        return failure(error)
    except BaseException:
        return Failure(type=type(error).__name__, message="the error can't be put into words")


def _not_now(number: int, frame: object) -> None:
    """Take SIGTERM and SIGINT, as a service manager sends them to all processes of a service:
    the worker decides how long a handler may keep running.

    They are not ignored, as programs that a handler starts would ignore them too.
    """


def _take_signals() -> None:
    """Reset all signals to what programs expect, whatever the worker was started with."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals():
        # Python ignores these two, and `subprocess` undoes that for programs.
        if number in (signal.SIGPIPE, getattr(signal, "SIGXFSZ", None)):
            continue
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, _not_now)
    signal.signal(signal.SIGINT, _not_now)


def _fill_standard_streams() -> None:
    """Open standard descriptors that are closed, before a file or socket gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)


def _adopt_orphans() -> None:
    """Adopt orphaned descendants, so that they are seen."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _has_children() -> bool:
    """Tell whether this process has children, live or not yet waited for; cheap where possible."""
    if not hasattr(os, "waitid"):
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True

"""A handler's process as its worker sees it."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import Pipe, util
from multiprocessing.connection import Connection

from jobwire.worker.processes.groups import end_others, processes, signal_group
from jobwire.worker.processes.keeping import Keeper, not_for_children
from jobwire.worker.processes.messages import Message
from jobwire.worker.processes.setup import ProcessStartFailed, Setup, search_path

log = logging.getLogger("jobwire.worker")

# Between SIGTERM and SIGKILL to a group.
TERM_S = 1.0
_LEAVE_S = 1.0
_LOOK_S = 0.02

# It can import nothing of ours until it has the search path of this process. If none comes, the
# worker was killed meanwhile. The garbage collector need not look through what stays for good.
BEGIN = """\
import gc, sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
try:
    sys.path[:] = pipe.recv()
except (EOFError, OSError):
    sys.exit()
gc.disable()
from jobwire.worker.processes.serving import serve
gc.freeze()
gc.enable()
serve(pipe)
"""


class HandlerProcess:
    """A process and the thread that starts it, listens to it and waits for its end.

    Args:
        setup: What it needs to know.
        keeper: Ends its group if this process dies.
    """

    def __init__(self, setup: Setup, keeper: Keeper) -> None:
        self._setup = setup
        self._keeper = keeper
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._send_lock = threading.Lock()
        self._group_lock = threading.Lock()
        self._group: int | None = None
        """None: not started, or ended; its id may be reused by then."""
        self._wanted = True
        self._terminated = False
        self.jobs = 0
        """How many jobs it was given."""
        self.ready: Future[None] = Future()
        """Done when it can run handlers; fails with ProcessStartFailed."""
        self.ended: Future[str] = Future()
        """Done when it and its group have ended; how it ended, in words."""
        self.on_message: Callable[[Message], None] = lambda message: None
        threading.Thread(target=self._live, name="jobwire-process", daemon=True).start()

    @property
    def dead(self) -> bool:
        """True once it has ended."""
        return self.ended.done()

    @property
    def was_terminated(self) -> bool:
        """True once its group was sent a signal that ends programs."""
        return self._terminated

    def send(self, message: Message) -> None:
        """Send a message; it is lost if the process is dead."""
        with suppress(OSError), self._send_lock:
            if self._pipe is not None:
                self._pipe.send(message)

    def terminate(self) -> None:
        """Send SIGTERM to its group: to the programs of handlers; handlers themselves ignore it."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill its group."""
        self._wanted = False
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        self._terminated = True
        with self._group_lock:
            if self._group is not None:
                signal_group(self._group, number)

    # In the thread.

    def _live(self) -> None:
        try:
            self._start()
        except Exception as error:
            self._fail_start(f"it can't be started: {type(error).__name__}: {error}")
            if self._process is None:
                self.ended.set_result("did not start")
                return
        self._listen()
        words = self._bury()
        self._fail_start(f"it {words}")
        self.ended.set_result(words)
        self.on_message(("died", words))

    def _start(self) -> None:
        if not sys.executable or getattr(sys, "frozen", False):
            raise RuntimeError("there is no Python interpreter to start it with (sys.executable)")
        ours, theirs = Pipe()
        not_for_children(ours)
        # Where a standard stream is closed here, a pipe may be in its place.
        number = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
        theirs.close()
        flags = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
        try:
            # Not by multiprocessing: its children may have none themselves, and it imports the
            # script of this process in each. Without a fork function that would run here, as gRPC's
            # threads would not survive it.
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-c", BEGIN, str(number), "jobwire-handler"],
                stdin=subprocess.DEVNULL,
                pass_fds=(number,),
                start_new_session=True,
            )
        finally:
            os.close(number)
        with self._group_lock:
            self._group = self._process.pid
        self._pipe = ours
        self._keeper.keep(self._process.pid)
        if not self._wanted:
            self.kill()
        with suppress(OSError):
            ours.send(search_path())
            ours.send(self._setup)

    def _listen(self) -> None:
        """Pass on its messages until it has ended or closed its end."""
        if self._pipe is None:
            return
        assert self._process is not None
        looks = select.poll()
        looks.register(self._pipe.fileno(), select.POLLIN)
        # A child of a handler may hold the other end open, so its closing alone does not tell.
        end = _end_of(self._process.pid)
        if end is not None:
            looks.register(end, select.POLLIN)
        try:
            while True:
                if self._pipe.fileno() not in dict(looks.poll()):
                    return
                try:
                    message = self._pipe.recv()
                except (EOFError, OSError):
                    return
                self._take(message)
        except Exception:
            # For instance what a handler wrote into the descriptor.
            log.exception(
                "the process of a handler sent a message that makes no sense; it is ended"
            )
            self.kill()
        finally:
            if end is not None:
                os.close(end)

    def _take(self, message: Message) -> None:
        if message[0] == "ready":
            if not self.ready.done():
                self.ready.set_result(None)
        elif message[0] == "unfit":
            self._fail_start(message[1])
            self.kill()
        else:
            self.on_message(message)

    def _fail_start(self, words: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(
                ProcessStartFailed(f"a process for handlers can't run them: {words}")
            )

    def _bury(self) -> str:
        """End what is left of the group; return how the process ended."""
        process = self._process
        assert process is not None
        closed_its_end = not _leaves(process.pid, _LEAVE_S)
        if closed_its_end:
            self.kill()
            _leaves(process.pid, None)
        # Before it is waited for: its id is the group's.
        end_others(process.pid, TERM_S)
        with self._group_lock:
            self._group = None
        self._keeper.forget(process.pid)
        code = process.wait()
        if self._pipe is not None:
            self._pipe.close()
        if closed_its_end:
            return (
                "was killed, as it had closed its pipe to the worker: does the handler close"
                " descriptors that it did not open?"
            )
        return _words_for(code) if self._wanted else "was killed by its worker"


def _words_for(code: int) -> str:
    """Return how a process ended, in words."""
    if code >= 0:
        return f"ended by itself with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    words = f"was ended by {name} (exit code {code})"
    return f"{words}; is memory short?" if name == "SIGKILL" else words


def _end_of(pid: int) -> int | None:
    """Open a descriptor that becomes readable when a process ends, where the system has such."""
    if sys.platform == "linux":
        with suppress(OSError):
            return os.pidfd_open(pid)
    return None


def _leaves(pid: int, within_s: float | None) -> bool:
    """Wait for the end of a child, keeping its id reserved; return True if it has ended."""
    end_s = None if within_s is None else time.monotonic() + within_s
    while not _has_ended(pid):
        if end_s is not None and time.monotonic() > end_s:
            return False
        time.sleep(_LOOK_S)
    return True


def _has_ended(pid: int) -> bool:
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        return any(one.pid == pid and one.is_zombie for one in processes())
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # somebody else has waited for it

"""The demo's broker and worker: started, waited for, and stopped whatever ends the demo."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeVar

from jobwire import CallError, Client
from jobwire.operators import ServerInfo, WorkerInfo

HERE = Path(__file__).resolve().parent
FIRST_PORT = 50051
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 20.0
ADDRESS_IN_USE = 4
"""The exit code of a broker whose address is in use."""


T = TypeVar("T")


class DemoError(Exception):
    """The demo can't go on; the message says why."""


class Stopped(BaseException):
    """A signal ends the demo."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Turn the first of SIGINT, SIGTERM and SIGHUP into `Stopped`.

    Not while a process is being started, which would be forgotten. Later signals change nothing, so
    that the shutdown that the first one began can finish.
    """

    def __init__(self) -> None:
        self._held = False
        self._came: int | None = None

    def listen(self) -> None:
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            # The terminal is gone, and the next write to it would be an error.
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(nowhere, stream)
        first = self._came is None
        self._came = self._came or number
        if first and not self._held:
            raise Stopped(number)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the first signal back for as long as the block takes."""
        before = self._came
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._came is not None and before is None:
            raise Stopped(self._came)

    def pause(self, seconds: float) -> None:
        """Sleep, and raise `Stopped` if a signal has come.

        What a signal's handler raises is lost where that interrupts a destructor or a callback
        of gRPC: whoever waits in a loop looks again.
        """
        time.sleep(seconds)
        if self._came is not None:
            raise Stopped(self._came)

    def ending(self) -> None:
        """Ignore signals from now on: everything is being stopped."""
        self._held = True


@dataclass
class Process:
    """A child of the demo, with its log."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise a DemoError with the end of its log if it has ended."""
        if self.popen.poll() is not None:
            last = "".join(self.log.read_text(errors="replace").splitlines(keepends=True)[-15:])
            code = self.popen.returncode
            raise DemoError(f"the {self.name} ended with exit code {code}:\n{last}")

    def stop(self) -> None:
        """Ask it to end, and kill it if it does not."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


def start(name: str, arguments: Sequence[str], data: Path, cwd: Path) -> Process:
    """Start a `jobwire` command with its output in a log file."""
    log = data / f"{name}.log"
    command = [sys.executable, "-m", "jobwire.cli", *arguments]
    with log.open("wb") as output:
        # In a session of its own: Ctrl-C is for the demo, which then stops its children in order.
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            start_new_session=True,
        )
    return Process(name, popen, log)


def free_port(wanted: int) -> int:
    """Return this port if it is free, otherwise another one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise DemoError("there is no free port on 127.0.0.1")


@contextlib.contextmanager
def running(
    data: Path, signals: Signals, tell: Callable[[str], None]
) -> Iterator[tuple[str, ServerInfo, WorkerInfo]]:
    """Run a broker and a worker attached to it, for as long as the block takes.

    Args:
        data: The folder for the store, the logs, and a note of what runs.
        signals: The signals that may end it.
        tell: Called with what the demo is waiting for.
    """
    data.mkdir(parents=True, exist_ok=True)
    note = data / "running.json"
    end_former(note, tell)
    processes: list[Process] = []

    def launch(name: str, arguments: Sequence[str], cwd: Path) -> Process:
        with signals.held():
            process = start(name, arguments, data, cwd)
            processes.append(process)
            children = [one.popen.pid for one in processes]
            note.write_text(json.dumps({"demo": os.getpid(), "children": children}))
        return process

    try:
        for attempt in range(3):
            tell("starting a broker")
            address = f"127.0.0.1:{free_port(0 if attempt else FIRST_PORT)}"
            store = str(data / "store")
            serve = ["serve", "--listen", address, "--http-listen", "", "--data-dir", store]
            broker = launch("broker", serve, Path.cwd())
            # Started together with the broker, which it finds as soon as there is one.
            name = f"demo-{os.getpid()}-{attempt}"
            work = ["worker", "tasks", "--target", address, "--id", name]
            worker = launch("worker", work, HERE)
            with Client(address, timeout_s=2) as client:
                try:
                    info = wait_for(partial(info_of, client, broker), signals, broker)
                except DemoError:
                    if broker.popen.poll() != ADDRESS_IN_USE or attempt == 2:
                        raise
                    # Somebody was faster.
                    worker.stop()
                    continue
                tell("waiting for the worker")
                first = wait_for(partial(client.worker, name), signals, broker, worker)
            break
        yield address, info, first
    finally:
        signals.ending()
        # The worker first, so that it can still give its jobs back.
        for process in reversed(processes):
            process.stop()
        note.unlink(missing_ok=True)


def info_of(client: Client, broker: Process) -> ServerInfo:
    """Return what a broker says of itself.

    Raises:
        CallError: It does not answer, or another one does, which was faster to take the port.
    """
    info = client.server_info()
    if info.server_id not in broker.log.read_text(errors="replace"):
        raise CallError(f"another broker, {info.server_id}, answers at its address")
    return info


def wait_for(look: Callable[[], T], signals: Signals, *processes: Process) -> T:
    """Ask until there is an answer, as long as the processes live."""
    deadline = time.monotonic() + START_DEADLINE_S
    while True:
        for process in processes:
            process.check()
        try:
            return look()
        except CallError as error:
            if time.monotonic() > deadline:
                raise DemoError(f"the {processes[-1].name} does not answer: {error}") from error
        signals.pause(0.05)


def end_former(note: Path, tell: Callable[[str], None]) -> None:
    """End what a demo that was killed left behind in this folder.

    Raises:
        DemoError: Another demo is running in it.
    """
    try:
        former = json.loads(note.read_text())
    except (OSError, ValueError):
        return
    if "demo.py" in command_of(former["demo"]):
        raise DemoError(
            f"another demo (process {former['demo']}) runs here: end it, or start this one in"
            " another directory"
        )
    for pid in former["children"]:
        # The process id may belong to another process by now.
        while "jobwire.cli" in command_of(pid):
            tell("ending what a former demo left behind")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            time.sleep(0.2)


def command_of(pid: int) -> str:
    """Return the command line of a process; empty if there is none."""
    done = subprocess.run(
        ["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout

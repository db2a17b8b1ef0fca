"""One of the processes that a supervisor keeps, and the words that go to it and back."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.host.child_messages import Failed, Orders, Served, Word
from jobwire_server.host.server import STUCK_S
from jobwire_server.store.connection.programs import Program
from jobwire_server.telemetry.shared_counters import SharedCounters, State


class ProcessDied(ConfigurationError):
    """A process exited during startup without saying why."""

    def __init__(self, index: int, status: int) -> None:
        super().__init__(f"process {index} ended in its start ({ending(status)})")
        self.killed = status < 0
        """A signal ended it: of somebody, or of a system without memory."""


class ChildProcess:
    """One of the processes, and whoever takes its place after its death.

    Args:
        index: From 0.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.counters = SharedCounters.create()
        self.restarts = 0
        """How often a process took the place of one that died."""
        self.started_at = 0.0
        self._process: Program | None = None
        self._link: Connection | None = None
        self._told: Word | None = None

    @property
    def pid(self) -> int | None:
        """The process id; None: it does not run just now."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def serves(self) -> bool:
        """It takes calls, and reaches a store that is trusted with jobs."""
        counters = self.counters
        return counters.state is State.SERVING and counters.store_up and counters.store_fit

    @property
    def stuck(self) -> bool:
        """Its event loop has not come round for long."""
        return (
            self.counters.state is not State.DOWN
            and time.monotonic() - self.counters.beat > STUCK_S
        )

    async def start(self, orders: Orders) -> Served | Failed | None:
        """Start a process; returns its first word, None if it ended without one."""
        ours, its = Pipe()
        self.started_at = time.monotonic()
        try:
            self._process = Program.start(
                sys.executable,
                # Whatever lies in the current directory is not to be imported.
                *(
                    "-P",
                    "-m",
                    "jobwire_server.host.child_start",
                    str(its.fileno()),
                    str(self.counters.fd),
                ),
                pass_fds=(its.fileno(), self.counters.fd),
            )
        finally:
            its.close()
        with suppress(OSError):  # it is dead already, which its end of the pipe tells
            ours.send(orders)
        self._link = ours
        if self._told:  # before there was anybody to hear it
            self.tell(self._told)
        first: Served | Failed | None = await receive(ours)
        return first

    def tell(self, word: Word) -> None:
        """Say it to the process, or to the one that is being started."""
        if isinstance(word, str):
            self._told = word  # whoever takes its place hears it too
        if self._link is not None:
            with suppress(OSError):
                self._link.send(word)

    def kill(self) -> None:
        """End it by force."""
        if self._process is not None:
            self._process.kill()

    async def ended(self) -> int:
        """Wait until the process has ended; its exit status, 0 if there was none."""
        status = await self._process.wait() if self._process is not None else 0
        self.counters.clear_levels()
        if self._link is not None:
            self._link.close()
            self._link = None
        return status


async def receive(link: Connection) -> Any:
    """Return the next word of the other side; None if it is gone."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(link.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(link.fileno())
    try:
        return link.recv()
    except (EOFError, OSError):
        return None


def ending(status: int) -> str:
    """Return how a process ended, for people."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"

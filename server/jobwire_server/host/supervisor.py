"""The parent of several server processes on one port: starts them, keeps them, shows them.

It runs the bundled store and the HTTP server, of which there is one each, and takes no calls
itself. A process that dies is started again; the parent's own end, however it comes, ends all.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.domain.units import parse_address
from jobwire_server.host.child_messages import DRAIN, NOW, Failed, LookAgain, Orders, Served, Word
from jobwire_server.host.event_loop import unless
from jobwire_server.host.http import HttpServer, Verdict
from jobwire_server.host.server import STUCK_HELP, STUCK_METRIC, STUCK_S, show_restarts
from jobwire_server.host.settings import Settings
from jobwire_server.host.shared_port import HeldPort
from jobwire_server.store.connection.engine import EmbeddedValkey
from jobwire_server.store.connection.programs import Program
from jobwire_server.telemetry.logs import LogFormat
from jobwire_server.telemetry.metrics import Metrics, ProcessesCollector, SharedRpcMetrics
from jobwire_server.telemetry.shared_counters import SharedCounters, State

RESTART_BACKOFF_S = (0.1, 30.0)
"""The first and the longest wait before a process that dies again and again is started."""
STABLE_S = 10.0
"""A process that lived for so long is started again at once."""
SLACK_S = 10.0
"""For the end of a process after the grace of its calls; then it is killed."""
KILL_AFTER_S = 5.0
"""For the end of a process that was told to hurry."""
KILLED_STARTS = 3
"""Processes of one slot that may be killed in the server's start before it gives up."""

log: FilteringBoundLogger = structlog.get_logger("jobwire.supervisor")


class ProcessDied(ConfigurationError):
    """A process ended in its start without a reason that it could tell."""

    def __init__(self, index: int, status: int) -> None:
        super().__init__(f"process {index} ended in its start ({_ending(status)})")
        self.killed = status < 0
        """A signal ended it: of somebody, or of a system without memory."""


class Slot:
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
                    "jobwire_server.host.child",
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
        first: Served | Failed | None = await _receive(ours)
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


async def _receive(link: Connection) -> Any:
    """The next word of the other side; None if it is gone."""
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


class Supervisor:
    """A server of several processes.

    Args:
        settings: Everything that can be chosen.
        log_format: The form of the processes' logs.
    """

    def __init__(self, settings: Settings, log_format: LogFormat) -> None:
        self.settings = settings
        self.address = settings.listen
        """Where gRPC is served; with the real port after start."""
        self.http: HttpServer | None = None
        self.served: Served | None = None
        """What the first process said; set by start."""
        self._log_format = log_format
        self._log_level: str = settings.log_level
        self._slots = [Slot(index) for index in range(settings.processes)]
        self._port: HeldPort | None = None
        self._engine: EmbeddedValkey | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Hold the port, start the store, the HTTP server and the processes.

        Raises:
            StoreRefused: The store can't be used.
            AddressInUse: An address can't be bound.
            ConfigurationError: Something else is wrong with the settings, or a process died.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop(grace_s=0)
            raise

    async def _start(self) -> None:
        settings = self.settings
        self._port = HeldPort(settings.listen)
        self.address = self._port.address
        if not settings.redis_url:
            self._engine = EmbeddedValkey(settings.data_dir, settings.durability)
            await self._engine.start()
        self._serve_http()
        starts = [asyncio.ensure_future(self._start_first(slot)) for slot in self._slots]
        try:
            for each in asyncio.as_completed(starts):
                self.served = await each
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
        self._keepers = [
            asyncio.create_task(self._keep(slot), name=f"keeper-{slot.index}")
            for slot in self._slots
        ]

    async def stop(self, grace_s: float, hurry: asyncio.Event | None = None) -> None:
        """Drain the processes, then stop everything. Idempotent.

        Args:
            grace_s: How long their calls in hand may take. 0: none at all.
            hurry: Once set, nothing is waited for any more.
        """
        started = bool(self._keepers)
        if started and not self._stopping.is_set():
            log.info("draining", grace_s=grace_s)
        self._stopping.set()
        if grace_s > 0:
            self._tell(DRAIN)
            await unless(hurry, _within(grace_s + SLACK_S, self._ends()))
        self._tell(NOW)
        await _within(KILL_AFTER_S, self._ends())
        for slot in self._slots:
            if slot.pid is not None:
                log.error("a process does not end and is killed", process=slot.index, pid=slot.pid)
                slot.kill()
        await asyncio.gather(*self._ends(), *self._keepers)
        if self.http is not None:
            await asyncio.to_thread(self.http.stop)
        if self._engine is not None:
            await self._engine.stop()
        if self._port is not None:
            self._port.close()
        if started:
            log.info("stopped")

    def look_again(self, log_level: str) -> None:
        """Have the processes read their certificates again.

        Args:
            log_level: Of their logs from now on. Empty: as it is.
        """
        if log_level:
            self._log_level = log_level
        self._tell(LookAgain(self._log_level))

    def _tell(self, word: Word) -> None:
        for slot in self._slots:
            slot.tell(word)

    def _ends(self) -> list[Awaitable[int]]:
        return [slot.ended() for slot in self._slots]

    def _orders(self, slot: Slot) -> Orders:
        embedded = self._engine is not None
        settings = {
            **self.settings.model_dump(),
            "listen": self.address,
            "log_level": self._log_level,
        }
        return Orders(
            settings=settings,
            index=slot.index,
            store_url=self._engine.url if self._engine is not None else self.settings.redis_url,
            embedded=embedded,
            log_format=self._log_format,
        )

    async def _start_first(self, slot: Slot) -> Served:
        """Start a process; try again where somebody killed it on its way."""
        for _ in range(KILLED_STARTS):
            try:
                return await self._start_slot(slot)
            except ProcessDied as died:
                if not died.killed or self._stopping.is_set():
                    raise
                log.error(
                    "a process was killed in its start and is started again", error=died.message
                )
                await asyncio.sleep(RESTART_BACKOFF_S[0])
        return await self._start_slot(slot)

    async def _start_slot(self, slot: Slot) -> Served:
        word = await slot.start(self._orders(slot))
        if word is None:
            status = await slot.ended()
            raise ProcessDied(slot.index, status)
        if isinstance(word, Failed):
            raise word.error
        return word

    async def _keep(self, slot: Slot) -> None:
        """Start the process again for as long as the server is not to stop."""
        delay = RESTART_BACKOFF_S[0]
        while True:
            status = await slot.ended()
            if self._stopping.is_set():
                return
            if time.monotonic() - slot.started_at > STABLE_S:
                delay = RESTART_BACKOFF_S[0]
            log.error(
                "a process has ended and is started again",
                process=slot.index,
                ending=_ending(status),
                wait_s=delay,
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
                    return
            delay = min(delay * 2, RESTART_BACKOFF_S[1])
            try:
                await self._start_slot(slot)
            except ConfigurationError as error:
                if not self._stopping.is_set():
                    log.error("a process does not start", process=slot.index, error=error.message)
            else:
                slot.restarts += 1
                log.info("the process is back", process=slot.index, restarts=slot.restarts)

    # What is shown.

    def _serve_http(self) -> None:
        if not self.settings.http_listen:
            return
        slots = self._slots
        pids: dict[str, Callable[[], int | None]] = {"parent": os.getpid}
        for slot in slots:
            pids[str(slot.index)] = _pid_of(slot)
        metrics = Metrics(
            SharedRpcMetrics([slot.counters for slot in slots]), ProcessesCollector(pids)
        )
        metrics.gauge(
            "jobwire_processes", "How many processes are to serve", lambda: float(len(slots))
        )
        metrics.gauge(
            "jobwire_processes_serving",
            "How many processes take calls and reach the store",
            lambda: float(self._serving()),
        )
        metrics.gauge(
            "jobwire_process_restarts",
            "How often a process died and was started again",
            lambda: float(sum(slot.restarts for slot in slots)),
        )
        metrics.gauge(
            "jobwire_store_up",
            "1: the store can be reached, by every process that runs",
            lambda: float(_store_is_up(slots)),
        )
        metrics.gauge(
            STUCK_METRIC, STUCK_HELP, lambda: float(sum(s.counters.stuck_handlers for s in slots))
        )
        if self._engine is not None:
            show_restarts(metrics, self._engine)
        host, port = parse_address(self.settings.http_listen)
        http = HttpServer(host, port, metrics, alive=self._alive, ready=self._ready)
        http.start()
        self.http = http

    def _serving(self) -> int:
        return sum(slot.serves for slot in self._slots)

    def _alive(self) -> Verdict:
        stuck = [str(slot.index) for slot in self._slots if slot.stuck]
        if stuck:
            return False, f"the event loop is stuck in process {', '.join(stuck)}"
        return True, "ok"

    def _ready(self) -> Verdict:
        if self._stopping.is_set():
            return False, "draining"
        serving = self._serving()
        running = [slot.counters for slot in self._slots if slot.counters.state is State.SERVING]
        why = ""
        if any(not counters.store_up for counters in running):
            why = "; the store does not answer"
        elif any(not counters.store_fit for counters in running):
            why = "; the store is unfit for new jobs, see the log or GetServerInfo"
        return serving > 0, f"{serving} of {len(self._slots)} processes serve{why}"


def _pid_of(slot: Slot) -> Callable[[], int | None]:
    return lambda: slot.pid


def _store_is_up(slots: Iterable[Slot]) -> bool:
    running = [slot for slot in slots if slot.counters.state is not State.DOWN]
    return bool(running) and all(slot.counters.store_up for slot in running)


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


async def _within(seconds: float, ends: Iterable[Awaitable[int]]) -> None:
    """Wait for all, for a time at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*ends)

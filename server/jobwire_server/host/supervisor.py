"""The parent of several server processes on one port: starts them, keeps them, shows them.

It runs the bundled store and the HTTP server, of which there is one each, and takes no calls
itself. A process that dies is started again; the parent's own end, however it comes, ends all.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import structlog
from structlog.typing import FilteringBoundLogger

from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.domain.units import parse_address
from jobwire_server.host.child_messages import DRAIN, NOW, Failed, LookAgain, Orders, Served, Word
from jobwire_server.host.child_process import ChildProcess, ProcessDied, ending
from jobwire_server.host.event_loop import unless
from jobwire_server.host.http import HttpServer, Verdict
from jobwire_server.host.server import STUCK_HELP, STUCK_METRIC, show_restarts
from jobwire_server.host.settings import Settings
from jobwire_server.host.shared_port import HeldPort
from jobwire_server.store.connection.engine import EmbeddedValkey
from jobwire_server.telemetry.logs import LogFormat
from jobwire_server.telemetry.metrics import Metrics, ProcessesCollector, SharedRpcMetrics
from jobwire_server.telemetry.shared_counters import State

RESTART_BACKOFF_S = (0.1, 30.0)
"""The first and the longest wait before a process that dies again and again is started."""
STABLE_S = 10.0
"""A process that lived for so long is started again at once."""
SLACK_S = 10.0
"""For the end of a process after the grace of its calls; then it is killed."""
KILL_AFTER_S = 5.0
"""For the end of a process that was told to hurry."""
KILLED_STARTS = 3
"""How often a process may be killed during the server's startup before it gives up."""

log: FilteringBoundLogger = structlog.get_logger("jobwire.supervisor")


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
        self._children = [ChildProcess(index) for index in range(settings.processes)]
        self._port: HeldPort | None = None
        self._engine: EmbeddedValkey | None = None
        self._keeping: list[asyncio.Task[None]] = []
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
        starts = [asyncio.ensure_future(self._start_first(child)) for child in self._children]
        try:
            for each in asyncio.as_completed(starts):
                self.served = await each
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
        self._keeping = [
            asyncio.create_task(self._keep(child), name=f"keep-{child.index}")
            for child in self._children
        ]

    async def stop(self, grace_s: float, hurry: asyncio.Event | None = None) -> None:
        """Drain the processes, then stop everything. Idempotent.

        Args:
            grace_s: How long their calls in hand may take. 0: none at all.
            hurry: Once set, nothing is waited for any more.
        """
        started = bool(self._keeping)
        if started and not self._stopping.is_set():
            log.info("draining", grace_s=grace_s)
        self._stopping.set()
        if grace_s > 0:
            self._tell(DRAIN)
            await unless(hurry, _within(grace_s + SLACK_S, self._ends()))
        self._tell(NOW)
        await _within(KILL_AFTER_S, self._ends())
        for child in self._children:
            if child.pid is not None:
                log.error(
                    "a process does not end and is killed", process=child.index, pid=child.pid
                )
                child.kill()
        await asyncio.gather(*self._ends(), *self._keeping)
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
        for child in self._children:
            child.tell(word)

    def _ends(self) -> list[Awaitable[int]]:
        return [child.ended() for child in self._children]

    def _orders(self, child: ChildProcess) -> Orders:
        embedded = self._engine is not None
        settings = {
            **self.settings.model_dump(),
            "listen": self.address,
            # It was read here; the store's URL stands beside the settings.
            "redis_url_file": "",
            "log_level": self._log_level,
        }
        return Orders(
            settings=settings,
            index=child.index,
            store_url=self._engine.url if self._engine is not None else self.settings.redis_url,
            embedded=embedded,
            log_format=self._log_format,
        )

    async def _start_first(self, child: ChildProcess) -> Served:
        """Start a process; try again where somebody killed it on its way."""
        for _ in range(KILLED_STARTS):
            try:
                return await self._start_child(child)
            except ProcessDied as died:
                if not died.killed or self._stopping.is_set():
                    raise
                log.error(
                    "a process was killed during startup and is started again", error=died.message
                )
                await asyncio.sleep(RESTART_BACKOFF_S[0])
        return await self._start_child(child)

    async def _start_child(self, child: ChildProcess) -> Served:
        word = await child.start(self._orders(child))
        if word is None:
            status = await child.ended()
            raise ProcessDied(child.index, status)
        if isinstance(word, Failed):
            raise word.error
        return word

    async def _keep(self, child: ChildProcess) -> None:
        """Start the process again for as long as the server is not to stop."""
        delay = RESTART_BACKOFF_S[0]
        while True:
            status = await child.ended()
            if self._stopping.is_set():
                return
            if time.monotonic() - child.started_at > STABLE_S:
                delay = RESTART_BACKOFF_S[0]
            log.error(
                "a process has ended and is started again",
                process=child.index,
                ending=ending(status),
                wait_s=delay,
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
                    return
            delay = min(delay * 2, RESTART_BACKOFF_S[1])
            try:
                await self._start_child(child)
            except ConfigurationError as error:
                if not self._stopping.is_set():
                    log.error("a process does not start", process=child.index, error=error.message)
            else:
                child.restarts += 1
                log.info("the process is back", process=child.index, restarts=child.restarts)

    # What is shown.

    def _serve_http(self) -> None:
        if not self.settings.http_listen:
            return
        children = self._children
        pids: dict[str, Callable[[], int | None]] = {"parent": os.getpid}
        for child in children:
            pids[str(child.index)] = _pid_of(child)
        metrics = Metrics(
            SharedRpcMetrics([child.counters for child in children]), ProcessesCollector(pids)
        )
        metrics.gauge(
            "jobwire_processes", "How many processes are to serve", lambda: float(len(children))
        )
        metrics.gauge(
            "jobwire_processes_serving",
            "How many processes take calls and reach the store",
            lambda: float(self._serving()),
        )
        metrics.gauge(
            "jobwire_process_restarts",
            "How often a process died and was started again",
            lambda: float(sum(child.restarts for child in children)),
        )
        metrics.gauge(
            "jobwire_store_up",
            "1: the store can be reached, by every process that runs",
            lambda: float(_store_is_up(children)),
        )
        metrics.gauge(
            STUCK_METRIC,
            STUCK_HELP,
            lambda: float(sum(s.counters.stuck_handlers for s in children)),
        )
        if self._engine is not None:
            show_restarts(metrics, self._engine)
        host, port = parse_address(self.settings.http_listen)
        http = HttpServer(host, port, metrics, alive=self._alive, ready=self._ready)
        http.start()
        self.http = http

    def _serving(self) -> int:
        return sum(child.serves for child in self._children)

    def _alive(self) -> Verdict:
        stuck = [str(child.index) for child in self._children if child.stuck]
        if stuck:
            return False, f"the event loop is stuck in process {', '.join(stuck)}"
        return True, "ok"

    def _ready(self) -> Verdict:
        if self._stopping.is_set():
            return False, "draining"
        serving = self._serving()
        running = [
            child.counters for child in self._children if child.counters.state is State.SERVING
        ]
        why = ""
        if any(not counters.store_up for counters in running):
            why = "; the store does not answer"
        elif any(not counters.store_fit for counters in running):
            why = "; the store is unfit for new jobs, see the log or GetServerInfo"
        return serving > 0, f"{serving} of {len(self._children)} processes serve{why}"


def _pid_of(child: ChildProcess) -> Callable[[], int | None]:
    return lambda: child.pid


def _store_is_up(children: Iterable[ChildProcess]) -> bool:
    running = [child for child in children if child.counters.state is not State.DOWN]
    return bool(running) and all(child.counters.store_up for child in running)


async def _within(seconds: float, ends: Iterable[Awaitable[int]]) -> None:
    """Wait for all, for a time at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*ends)

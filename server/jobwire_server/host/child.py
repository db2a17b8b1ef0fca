"""One process of several that serve a port: what the supervisor starts and tells to end.

The two speak over a pipe, in the words of `pipe`. Its end is the end of the parent, after which no
child may stay.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection

import structlog
from structlog.typing import FilteringBoundLogger

from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.host.child_messages import NOW, Failed, LookAgain, Orders, Served, Word
from jobwire_server.host.event_loop import calm_the_collector, run
from jobwire_server.host.server import Application, Sibling
from jobwire_server.host.settings import Settings
from jobwire_server.host.signals import end_without_a_word
from jobwire_server.store.connection.engine import shut_down
from jobwire_server.telemetry.logs import configure_logs
from jobwire_server.telemetry.shared_counters import SharedCounters
from jobwire_server.telemetry.standard_streams import let_go_of_the_rest, open_closed_streams

PULSE_S = 1.0
ORPHAN_S = 5.0
"""An orphan that hangs is ended by force after so long."""
_PR_SET_PDEATHSIG = 1

log: FilteringBoundLogger = structlog.get_logger("jobwire.server")


class Child:
    """This process, at its end of the pipe.

    Args:
        orders: What to be.
        link: The pipe.
        counters: Where to count.
    """

    def __init__(self, orders: Orders, link: Connection, counters: SharedCounters) -> None:
        self._orders = orders
        self._link = link
        self._counters = counters
        self._orphaned = False
        self._application: Application | None = None
        self._looks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    async def serve(self) -> None:
        """Serve until told to end, by the parent or by SIGTERM.

        Raises:
            ConfigurationError: The start was refused; the parent knows.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._look_again)
        threading.Thread(target=self._listen, args=(loop,), name="parent", daemon=True).start()
        orders = self._orders
        settings = Settings(**orders.settings)
        sibling = Sibling(
            orders.index, settings.processes, self._counters, orders.store_url, orders.embedded
        )
        application = self._application = Application(settings, sibling)
        pulse = asyncio.create_task(self._pulse(), name="pulse")
        try:
            if await self._start(application):
                await self._stopping.wait()
                await application.stop(settings.shutdown_grace.total_seconds(), self._hurry)
        finally:
            pulse.cancel()
            if self._orphaned and orders.embedded:
                await shut_down(orders.store_url)

    async def _start(self, application: Application) -> bool:
        start = asyncio.ensure_future(application.start())
        stop = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not start.done():
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            return False
        try:
            start.result()
        except ConfigurationError as error:
            self._say(Failed(error))
            raise
        calm_the_collector()
        facts = application.facts
        assert facts is not None
        log.info("serving", server_id=facts.server_id, pid=os.getpid())
        self._say(Served(facts.server_id, facts.version, facts.store))
        return True

    def _say(self, word: Served | Failed) -> None:
        with suppress(OSError):  # the parent is gone, which the listener finds out
            self._link.send(word)

    async def _pulse(self) -> None:
        while True:
            self._counters.beat = time.monotonic()
            if self._application is not None:
                self._counters.stuck_handlers = self._application.stuck_handlers
            await asyncio.sleep(PULSE_S)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread, which works even while the event loop does not come round."""
        with suppress(RuntimeError):  # the loop is closed: the process ends
            try:
                while True:
                    loop.call_soon_threadsafe(self._obey, self._link.recv())
            except (EOFError, OSError):
                self._orphaned = True
                loop.call_soon_threadsafe(self._obey, NOW)
        time.sleep(ORPHAN_S)
        os._exit(1)

    def _obey(self, word: Word) -> None:
        if isinstance(word, LookAgain):
            configure_logs(self._orders.log_format, word.log_level, process=self._orders.index)
            self._look_again()
            return
        self._stopping.set()
        if word == NOW:
            self._hurry.set()

    def _look_again(self) -> None:
        if self._application is not None:
            look = asyncio.ensure_future(self._application.look_at_certificates())
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)


def _wake_when_the_parent_dies() -> None:
    """Let the system continue this process, should it be stopped when its parent dies.

    It would keep the port from the next server otherwise, and the store with it.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)


def main(link_fd: int, counters_fd: int) -> int:
    """Serve as one of several processes; the exit code."""
    end_without_a_word()
    _wake_when_the_parent_dies()
    open_closed_streams()
    link, counters = Connection(link_fd), SharedCounters(counters_fd)
    try:
        orders: Orders = link.recv()
    except EOFError:
        return 1
    configure_logs(orders.log_format, orders.settings["log_level"], process=orders.index)
    try:
        run(Child(orders, link, counters).serve())
    except ConfigurationError:
        return 1
    finally:
        let_go_of_the_rest()
    return 0

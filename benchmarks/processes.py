"""Processes that a benchmark starts, and what they cost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 30.0


def free_port() -> int:
    """Returns a TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def until(
    condition: Callable[[], Awaitable[bool]],
    what: str,
    *,
    timeout_s: float = START_DEADLINE_S,
    pause_s: float = 0.02,
) -> None:
    """Waits until the condition holds.

    Raises:
        TimeoutError: It does not hold after timeout_s.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not await condition():
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(f"{what}: not so after {timeout_s:g} s")
        await asyncio.sleep(pause_s)


@contextlib.asynccontextmanager
async def running(
    command: Sequence[str], log: Path, *, talks: bool = False, cwd: Path | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs a program for as long as the context lasts.

    Args:
        command: The program and its arguments.
        log: Where its output goes; in a directory of its own.
        talks: True for pipes to its standard input and from its standard output.
        cwd: Its working directory; None: the repository.

    Raises:
        TimeoutError: It did not end within STOP_DEADLINE_S of being asked, and was killed.
    """
    # Settings of whoever runs the benchmark must not reach the server that is measured.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("JOBWIRE_")
    }
    settings = log.with_name("settings.toml")
    settings.touch()
    environment["JOBWIRE_CONFIG"] = str(settings)
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE if talks else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if talks else output,
            stderr=output,
            cwd=cwd or ROOT,
            env=environment,
            # A Ctrl-C in the terminal is for the benchmark, which ends this process itself.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        await _end(process)


def check_alive(process: asyncio.subprocess.Process, log: Path) -> None:
    """Raises RuntimeError with the end of the log if the process has ended."""
    if process.returncode is not None:
        raise RuntimeError(
            f"ended with status {process.returncode}: {log.read_text(errors='replace')[-2000:]}"
        )


def cpu_s(pid: int) -> float:
    """Returns the CPU time that a process has used, in seconds; 0 where /proc does not tell."""
    if not sys.platform.startswith("linux"):
        return 0.0
    # The second field is the program's name in parentheses and may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Returns the memory that a process occupies; 0 where /proc does not tell."""
    if not sys.platform.startswith("linux"):
        return 0
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_DEADLINE_S):
            await process.wait()
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise

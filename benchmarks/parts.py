"""Programs beside the server: each in a process of its own, and told what to do line by line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import running

ANSWER_DEADLINE_S = 600.0
CLOSE_DEADLINE_S = 10.0


def module(
    name: str, *arguments: str | int, profile: Path | None = None, trace: Path | None = None
) -> tuple[str, ...]:
    """Returns the command that runs a module.

    Args:
        name: Of the module.
        arguments: For it.
        profile: The file to write a profile to; None: it is not profiled.
        trace: The file to write moments to (`benchmarks.traced`); None: they are not noted.
    """
    given = tuple(map(str, arguments))
    if trace is not None:
        return (sys.executable, "-m", "benchmarks.traced", str(trace), name, *given)
    if profile is None:
        return (sys.executable, "-m", name, *given)
    return (sys.executable, "-m", "benchmarks.profiled", str(profile), name, *given)


class Part:
    """A program that answers each line on its standard input by a line of JSON."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self.pid = process.pid

    async def ask(self, line: str) -> Any:
        """Has it do something, and returns what it says once it is done.

        Raises:
            RuntimeError: It ended.
            TimeoutError: It said nothing for ANSWER_DEADLINE_S.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it has ended; `answer` says so better
            self._process.stdin.write(f"{line}\n".encode())
            await self._process.stdin.drain()
        return await self.answer()

    async def answer(self) -> Any:
        """Returns its next line of JSON; some programs greet their terminal in between.

        Raises:
            RuntimeError: It ended.
            TimeoutError: It said nothing for ANSWER_DEADLINE_S.
        """
        assert self._process.stdout is not None
        async with asyncio.timeout(ANSWER_DEADLINE_S):
            while line := await self._process.stdout.readline():
                if line.startswith(b"{"):
                    return json.loads(line)
        said = self._log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"a program of the benchmark ended early: {said}")

    async def close(self) -> None:
        """Ends its input, and gives it some time to end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await self._process.wait()


@contextlib.asynccontextmanager
async def open_part(command: Sequence[str], *, cwd: Path | None = None) -> AsyncIterator[Part]:
    """Runs a program for as long as the context lasts, and waits until it says that it is ready.

    Args:
        command: The program and its arguments.
        cwd: Its working directory; None: the repository.
    """
    with tempfile.TemporaryDirectory(prefix="jwb-") as folder:
        log = Path(folder) / "log"
        async with running(command, log, talks=True, cwd=cwd) as process:
            part = Part(process, log)
            await part.answer()
            try:
                yield part
            finally:
                await part.close()


def say(line: dict[str, Any]) -> None:
    """Says something to the benchmark; for the programs themselves."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()

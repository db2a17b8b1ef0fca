"""Programs that the server starts: the bundled store, and the processes of one port.

Nothing here forks. A fork of a process in which gRPC runs has gRPC's handlers run in the child, on
locks that belong to threads which the child does not have, and some of these children die of it.
`subprocess` uses vfork on Linux where nothing is to be done between it and the new program; vfork
runs no handlers. The event loops' own functions (uvloop's among them) do fork.
See docs/adr/0020-start-programs-without-fork.md.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO


class Program:
    """A program that runs, until `wait` says that it has ended. Make it with `start`."""

    def __init__(self, popen: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._popen = popen
        self._loop = loop
        self._over = asyncio.Event()
        self._status: int | None = None
        threading.Thread(target=self._watch, name=f"wait-{popen.pid}", daemon=True).start()

    @classmethod
    def start(
        cls,
        *args: str | bytes,
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | int | None = None,
        pass_fds: Sequence[int] = (),
        umask: int = -1,
    ) -> Program:
        """Start a program in a session of its own: a Ctrl-C in the terminal is for the server.

        Args:
            args: The program and its arguments.
            env: Its environment. None: this process's.
            output: Where both of its output streams go. None: where this process's go.
            pass_fds: Descriptors that it inherits under the same numbers, beside the output.
            umask: Of the files that it makes. -1: as this process's.

        Raises:
            OSError: It can't be run.
        """
        popen = subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            pass_fds=pass_fds,
            start_new_session=True,
            umask=umask,
        )
        return cls(popen, asyncio.get_running_loop())

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs, as far as is known."""
        return self._status

    async def wait(self) -> int:
        """Wait for its end; return the exit code, negative for a signal."""
        await self._over.wait()
        assert self._status is not None
        return self._status

    def terminate(self) -> None:
        """Send SIGTERM; nothing happens if it has ended."""
        with suppress(ProcessLookupError):
            self._popen.terminate()

    def kill(self) -> None:
        """Send SIGKILL; nothing happens if it has ended."""
        with suppress(ProcessLookupError):
            self._popen.kill()

    def _watch(self) -> None:
        """In a thread: no event loop has to be told of children, and none takes another's."""
        status = self._popen.wait()
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._end, status)

    def _end(self, status: int) -> None:
        self._status = status
        self._over.set()

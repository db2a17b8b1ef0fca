"""Commands of Jobwire as processes of their own, forked off one that has imported everything.

At its start a process spends a second of CPU on imports, more than most tests take. Here they are
made once in a run, by the *stem*; each process is forked off it, with arguments, environment,
directory and standard streams of its own, and becomes a child of the tests like any other. A server
of several processes has these forked off in the same way.
Tests of the start itself use `subprocess`.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.support import leftovers

ROOT = Path(__file__).parents[2]
_STEM = Path(__file__).with_name("warm_stem.py")
# What the interpreter, gRPC or the locale read once, so that a fork can't have it otherwise.
_READ_ONCE = ("PYTHON", "LC_", "LANG", "GRPC_", "TZ", "LD_", "MALLOC_")
_LENGTH_BYTES = 4

Descriptor = int | None


class WarmProcess:
    """Runs `python -m MODULE ARGUMENTS`; to be used as a `subprocess.Popen`.

    Args:
        module: Of the product, or of the tests.
        arguments: Of the command line.
        stdin: A descriptor. None: /dev/null.
        stdout: A descriptor.
        stderr: A descriptor.
        cwd: The working directory. None: that of the tests.
        env: The whole environment. None: that of the tests.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        stdin: Descriptor = None,
        stdout: int,
        stderr: int,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.args = [sys.executable, "-m", module, *arguments]
        self.returncode: int | None = None
        self._reaping = threading.Lock()
        environment = dict(os.environ if env is None else env)
        wanted = json.dumps([module, [*arguments], str(cwd or Path.cwd()), environment]).encode()
        if stdin is not None:
            self.pid = _stem().fork(wanted, (stdin, stdout, stderr))
            return
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            self.pid = _stem().fork(wanted, (nothing, stdout, stderr))
        finally:
            os.close(nothing)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: It goes on.
        """
        if timeout is None:
            code = self._reap(0)
            assert code is not None
            return code
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _reap(self, options: int) -> int | None:
        with self._reaping:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, options)
                if pid == self.pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode


Process = subprocess.Popen[bytes] | WarmProcess
"""Either kind."""


def start(
    module: str,
    arguments: Sequence[str],
    *,
    output: int,
    errors: Descriptor = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start `python -m MODULE ARGUMENTS` with no input and its output to a descriptor, or to two.

    Modules of the tests are found as well.
    """
    errors = output if errors is None else errors
    if is_fit(env):
        return WarmProcess(module, arguments, stdout=output, stderr=errors, cwd=cwd, env=env)
    env = dict(os.environ if env is None else env)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (env.get("PYTHONPATH"), str(ROOT))))
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        cwd=cwd,
        env=env,
    )


def run(
    module: str,
    arguments: Sequence[str],
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m MODULE ARGUMENTS` to its end, as `subprocess.run` does."""
    if not is_fit(env):
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=env,
        )
    with ExitStack() as files:
        given, out, err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(stdin)
        given.seek(0)
        process = WarmProcess(
            module,
            arguments,
            stdin=given.fileno(),
            stdout=out.fileno(),
            stderr=err.fileno(),
            env=env,
        )
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(process.args, code, out.read(), err.read())


def is_fit(env: Mapping[str, str] | None) -> bool:
    """Tell whether a process with this environment may be forked off the stem."""
    return leftovers.adopts and (env is None or _read_once(env) == _read_once(os.environ))


def _read_once(env: Mapping[str, str]) -> list[tuple[str, str]]:
    # Streams are made anew in the fork, and written to at once in any case.
    return sorted(
        (name, value)
        for name, value in env.items()
        if name.startswith(_READ_ONCE) and name != "PYTHONUNBUFFERED"
    )


class _Stem:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(_STEM), str(theirs.fileno())],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # A fork must be safe: `jobwire worker` would begin anew where it is not.
                env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "false"},
            )
        leftovers.kept.add(self._process.pid)
        atexit.register(self._end, os.getpid())

    def fork(self, wanted: bytes, streams: tuple[int, int, int]) -> int:
        """Return the id of a new process, which is a child of this one."""
        with self._lock:
            socket.send_fds(self._ours, [len(wanted).to_bytes(_LENGTH_BYTES, "big")], streams)
            self._ours.sendall(wanted)
            pid = int.from_bytes(self._ours.recv(_LENGTH_BYTES, socket.MSG_WAITALL), "big")
        assert pid, "the stem of all commands has died"
        return pid

    def _end(self, owner: int) -> None:
        if os.getpid() != owner:  # in a fork of a test's
            return
        self._ours.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)


_made: _Stem | None = None
_making = threading.Lock()


def _stem() -> _Stem:
    global _made
    with _making:
        if _made is None:
            _made = _Stem()
        return _made

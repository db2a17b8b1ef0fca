"""Signals at any moment: a server ends in order or not at all, and leaves no store behind."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobwire import Client, JobState

from tests.support.servers import ServerProcess
from tests.support.stores import wait_until


def _store_runs(data_dir: Path) -> bool:
    """A Valkey holds its lock on the directory."""
    try:
        with (data_dir / "valkey.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _begun(_: ServerProcess, _data_dir: Path) -> bool:
    return True


def _holds_the_directory(_: ServerProcess, data_dir: Path) -> bool:
    return (data_dir / "lock").exists()


def _runs_the_store(_: ServerProcess, data_dir: Path) -> bool:
    return (data_dir / "valkey.log").exists()


def _store_loads(_: ServerProcess, data_dir: Path) -> bool:
    return (data_dir / "valkey.pid").exists()


def _store_writes(_: ServerProcess, data_dir: Path) -> bool:
    return (data_dir / "appendonlydir").exists()


def _serves(server: ServerProcess, _: Path) -> bool:
    return "gRPC" in server.log


@pytest.mark.parametrize(
    ("processes", "number", "moment"),
    [
        ("1", signal.SIGTERM, _begun),
        ("1", signal.SIGTERM, _holds_the_directory),
        ("1", signal.SIGTERM, _runs_the_store),
        ("1", signal.SIGTERM, _store_loads),
        ("1", signal.SIGTERM, _store_writes),
        ("1", signal.SIGTERM, _serves),
        ("1", signal.SIGINT, _holds_the_directory),
        ("1", signal.SIGINT, _store_loads),
        ("1", signal.SIGINT, _store_writes),
        ("2", signal.SIGTERM, _runs_the_store),
        ("2", signal.SIGINT, _store_writes),
    ],
)
def test_a_signal_at_any_moment_of_the_start_leaves_nothing_behind(
    processes: str,
    number: signal.Signals,
    moment: Callable[[ServerProcess, Path], bool],
    tmp_path: Path,
) -> None:
    # While Python starts there is no moment but the very first.
    cold = moment is _begun
    server = ServerProcess("--processes", processes, data_dir=tmp_path / "data", cold=cold)
    try:
        server.spawn()
        wait_until(lambda: moment(server, tmp_path / "data"), "the moment has come")
        server.signal(number)
        # Ended by the signal itself while there is nothing to tidy up, else in order.
        assert server.wait() in ((0, -number) if moment is _begun else (0,))
        assert "Traceback" not in server.log
        assert not _store_runs(tmp_path / "data")
    finally:
        server.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A broker on its bundled Valkey; not started yet."""
    server = ServerProcess(data_dir=tmp_path / "data")
    yield server
    server.stop()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_sighup_reads_the_settings_again_and_ends_nothing(
    processes: str, server: ServerProcess, tmp_path: Path
) -> None:
    config = tmp_path / "jobwire.toml"
    config.write_text('log_level = "info"\n')
    server.flags = ("--processes", processes, "--config", str(config), "--log-requests", "all")
    server.start()
    with Client(server.address) as client:
        job = client.submit("nobody")
        config.write_text('log_level = "nonsense"\n')
        server.signal(signal.SIGHUP)
        wait_until(lambda: "the settings can't be used" in server.log, "it says that it can't")
        config.write_text('log_level = "warning"\nlease = "77s"\n')
        server.signal(signal.SIGHUP)
        wait_until(lambda: "settings have changed that take effect" in server.log, "it is told")
        assert "lease" in server.log.partition("take effect")[2]
        config.write_text('log_level = "debug"\n')
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.log.count("settings read again") == 2, "and read again")
        seen = len(server.log)

        def written() -> bool:
            # Each process hears of it a moment after the one that says so.
            assert client.get(job.id).state is JobState.PENDING
            return "GetJob" in server.log[seen:]

        wait_until(written, "calls are written again")


def test_sighup_to_one_process_of_several_does_not_end_it(server: ServerProcess) -> None:
    server.flags = ("--processes", "2")
    server.start()
    pids = [int(pid) for pid in re.findall(r"serving +pid=(\d+)", server.log)]
    for pid in pids:
        os.kill(pid, signal.SIGHUP)
    assert len(pids) == 2
    with Client(server.address) as client:
        client.submit("nobody")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "is started again" not in server.log


def _in_a_terminal(data_dir: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A server in the foreground of a terminal of its own, and our end of the terminal."""
    ours, its = pty.openpty()
    command = (
        *(sys.executable, "-m", "jobwire_server", "--listen", "127.0.0.1:0"),
        *("--http-listen", "", "--data-dir", str(data_dir)),
    )
    process = subprocess.Popen(
        ["setsid", "--ctty", *command], stdin=its, stdout=its, stderr=its, cwd=data_dir.parent
    )
    os.close(its)
    return process, ours


@pytest.mark.skipif(sys.platform != "linux", reason="needs setsid")
def test_a_server_whose_terminal_is_closed_ends_in_order(
    tmp_path: Path, server: ServerProcess
) -> None:
    process, terminal = _in_a_terminal(tmp_path / "data")
    try:
        said = b""
        while b"SubmitJob" not in said:
            said += os.read(terminal, 4096)
        found = re.search(rb"gRPC   (\S+)", said)
        assert found is not None
        with Client(found[1].decode()) as client:
            job = client.submit("nobody")
        # For settings that have changed, while the terminal is there.
        process.send_signal(signal.SIGHUP)
        while b"settings read again" not in said:
            said += os.read(terminal, 4096)
        os.close(terminal)
        terminal = -1
        assert process.wait(timeout=60) == 0
    finally:
        if terminal >= 0:
            os.close(terminal)
        process.kill()
        process.wait()
    assert not _store_runs(tmp_path / "data")
    server.start()
    with Client(server.address) as client:
        assert client.get(job.id).state is JobState.PENDING

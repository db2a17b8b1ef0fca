"""Each benchmark for real, very small: that it starts what it needs, is right, and ends it."""

from __future__ import annotations

import asyncio
import json
import os
import pstats
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.peers.systems import SYSTEMS
from benchmarks.registry import BENCHMARKS
from tests.support.stores import server_binary

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "end-to-end": 100,
    "drain": 100,
    "submit-unary": 100,
    "submit-one": 30,
    "call": 30,
    "unary-feed": 100,
    "unary-life": 100,
    "overload": 400,
    "peers": 100,
    "peers-one": 10,
    "memory": 2_000,
    "backlog": 2_000,
    "store-time": 300,
    "dispatch-latency": 20,
    "hops": 20,
    "streams": 300,
    "watchers": 40,
    "output": 100,
    "watch-cost": 300,
    "recovery": 1,
    "idle": 20,
    "hot-path": 100,
}

PEERS = ("peers", "peers-one")

HURRIED = """
from benchmarks import __main__, idle, recovery
idle.QUIET_S, idle.WINDOW_S = 0.5, 0.5
recovery.CASES = recovery.CASES[1:3] + recovery.CASES[4:]
recovery.SPREAD_S = 0.1
recovery.SETTINGS = (
    *("--lease", "3s", "--heartbeat-interval", "300ms"),
    *("--worker-timeout", "1500ms", "--reconnect-window", "1s"),
)
__main__.main()
"""
"""Benchmarks, of which recovery has a case of each kind, and settings that notice a kill soon, and
idle waits for next to nothing."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a benchmark writes; its name is short enough for the path of a socket below it."""
    with tempfile.TemporaryDirectory(prefix="jwt-") as name:
        yield Path(name)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks", *arguments]


def _environment(folder: Path) -> dict[str, str]:
    # Everything that a benchmark writes is below TMPDIR, so that what it leaves can be seen.
    return {**os.environ, "TMPDIR": str(folder)}


def _lines_of_ps(columns: str) -> list[str]:
    """A line for each live process."""
    listed = subprocess.run(["ps", "-ww", "-eo", columns], capture_output=True, text=True)
    return listed.stdout.splitlines()[1:]


def _processes_below(folder: Path) -> list[str]:
    """The command lines of processes that work in the folder."""
    return [args for args in _lines_of_ps("args") if str(folder) in args]


def _children(pid: int) -> set[str]:
    """The ids of the processes that a process has started."""
    pairs = [line.split() for line in _lines_of_ps("ppid,pid")]
    return {child for parent, child in pairs if parent == str(pid)}


def _alive(pids: set[str]) -> bool:
    return not pids.isdisjoint(line.strip() for line in _lines_of_ps("pid"))


@pytest.mark.smoke
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_and_leaves_nothing_behind(name: str, folder: Path) -> None:
    if BENCHMARKS[name].engine == "redis" and server_binary("redis") is None:
        pytest.skip("no redis-server on PATH")
    if name in PEERS and not all((system.install[0] / ".ready").exists() for system in SYSTEMS):
        pytest.skip("the peers are not installed: python -m benchmarks.peers.benchmark")
    if name == "overload" and shutil.which("go") is None:
        pytest.skip("no Go on PATH, which its producers are written in")
    program = ["-c", HURRIED] if name in ("recovery", "idle") else ["-m", "benchmarks"]
    rounds = "2" if name == "submit-unary" else "1"  # which are put together alike for all
    done = subprocess.run(
        [sys.executable, *program, name, "--json", "--jobs", str(TINY[name]), "--rounds", rounds],
        cwd=ROOT,
        env=_environment(folder),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["machine"]["cores"] == os.cpu_count()
    (benchmark,) = document["benchmarks"]
    assert (benchmark["name"], benchmark["jobs"]) == (name, TINY[name])
    assert benchmark["figures"]
    for figure in benchmark["figures"]:
        assert figure["value"]["low"] <= figure["value"]["median"] <= figure["value"]["high"]
    assert any(figure["goal"] for figure in benchmark["figures"])
    assert [*folder.iterdir()] == []
    assert _processes_below(folder) == []


@pytest.mark.smoke
@pytest.mark.parametrize("name", [name for name, b in BENCHMARKS.items() if b.run_backlog])
def test_a_benchmark_runs_with_a_backlog(name: str, folder: Path) -> None:
    done = subprocess.run(
        _command(name, "--json", "--jobs", "100", "--rounds", "1", "--backlog", "1000"),
        cwd=ROOT,
        env=_environment(folder),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    (benchmark,) = json.loads(done.stdout)["benchmarks"]
    assert benchmark["backlog"] == 1000
    assert all("1,000 waiting" in figure["name"] for figure in benchmark["figures"])
    assert all(figure["ratio"]["against"] for figure in benchmark["figures"])
    assert [*folder.iterdir()] == []


def test_a_benchmark_without_such_a_comparison_says_so_of_a_backlog() -> None:
    done = subprocess.run(
        _command("memory", "--backlog", "1"), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "memory" in done.stderr


@pytest.mark.smoke
def test_a_profile_of_each_process_is_written_where_it_is_wanted(folder: Path) -> None:
    profiles = folder / "profiles"
    done = subprocess.run(
        _command("end-to-end", "--jobs", "200", "--rounds", "1", "--profile", str(profiles)),
        cwd=ROOT,
        env=_environment(folder),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in profiles.iterdir()) == [
        "producer.prof",
        "server.prof",
        "worker.prof",
    ]
    for file in profiles.iterdir():
        assert pstats.Stats(str(file)).total_calls > 1_000  # type: ignore[attr-defined]


@pytest.mark.smoke
async def test_a_benchmark_that_is_stopped_ends_what_it_started(folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *_command("submit-unary", "--rounds", "1000"),
        cwd=ROOT,
        env=_environment(folder),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            async for said in process.stderr:
                if b"round 1" in said:
                    break
            children = _children(process.pid)
            assert len(children) == 3, "a store, a broker and an echo"
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await process.communicate()
    assert process.returncode == 1
    assert [*folder.iterdir()] == []
    assert not _alive(children)


def test_a_name_that_is_none_is_told_with_those_that_are() -> None:
    done = subprocess.run(_command("nothing"), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "submit-unary" in done.stderr

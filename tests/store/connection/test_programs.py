"""Programs are started without a fork, which gRPC's handlers don't survive."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobwire_server.store.connection.programs import Program

pytestmark = pytest.mark.processes

COUNTING = """
import asyncio, ctypes, os, pathlib, signal, sys
import uvloop
from jobwire_server.store.connection.engine import EmbeddedValkey
from jobwire_server.host.child_process import ChildProcess
from jobwire_server.host.child_messages import Orders

forks = 0
@ctypes.CFUNCTYPE(None)
def before_fork():
    global forks
    forks += 1
# What pthread_atfork is made of, and where gRPC's handlers stand.
assert ctypes.CDLL(None).__register_atfork(before_fork, None, None, None) == 0

async def main():
    engine = EmbeddedValkey(pathlib.Path(sys.argv[1]))
    await engine.start()
    os.kill(int((engine.data_dir / "valkey.pid").read_text()), signal.SIGKILL)
    while engine.restarts == 0:
        await asyncio.sleep(0.01)
    await engine.stop()
    child = ChildProcess(0)
    starting = asyncio.ensure_future(child.start(Orders({}, 0, "", False, "json")))
    await asyncio.sleep(0)
    child.kill()
    await starting
    await child.ended()

uvloop.run(main())
print(forks)
if (child := os.fork()) == 0:
    os._exit(0)
os.waitpid(child, 0)
print(forks)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has vfork for this")
def test_no_program_of_the_server_is_forked_where_handlers_of_libraries_would_run(
    tmp_path: Path,
) -> None:
    pytest.importorskip("uvloop")
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines()[-2:] == ["0", "1"], done.stdout + done.stderr


async def test_a_program_tells_how_it_ended() -> None:
    assert await Program.start(sys.executable, "-c", "raise SystemExit(7)").wait() == 7
    slow = Program.start("sleep", "600")
    assert slow.returncode is None
    slow.kill()
    assert await slow.wait() == -signal.SIGKILL
    assert slow.returncode == -signal.SIGKILL
    slow.kill()
    slow.terminate()


async def test_a_program_that_does_not_exist_can_not_be_started() -> None:
    with pytest.raises(FileNotFoundError):
        Program.start("/nowhere/at/all")


async def test_many_may_wait_for_one_end() -> None:
    program = Program.start("sleep", "600")
    waits = [asyncio.ensure_future(program.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    program.terminate()
    assert await asyncio.gather(*waits) == [-signal.SIGTERM] * 3

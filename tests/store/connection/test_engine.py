"""The bundled Valkey: data outlives everything, and no two servers share it."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

from jobwire_server.store.connection import engine as module
from jobwire_server.store.connection.connect import StoreRefused
from jobwire_server.store.connection.data_directory import DataDirectory
from jobwire_server.store.connection.engine import EmbeddedValkey

from tests.support.stores import wait_until
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedValkey]:
    engine = EmbeddedValkey(tmp_path / "data")
    yield engine
    await engine.stop()


def _client(engine: EmbeddedValkey) -> redis.Redis:
    return redis.Redis.from_url(engine.url, retry=None, socket_timeout=5)


def _pid(engine: EmbeddedValkey) -> int:
    with _client(engine) as client:
        return int(client.info("server")["process_id"])


def _alive(engine: EmbeddedValkey) -> bool:
    try:
        with _client(engine) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


async def test_it_answers_after_start_with_the_settings_that_keep_jobs(
    engine: EmbeddedValkey,
) -> None:
    await engine.start()
    with _client(engine) as client:
        config = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "port", "save")
    assert config == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "port": "0",
        "save": "",
    }


def _tunables(engine: EmbeddedValkey) -> str | None:
    environment = Path(f"/proc/{_pid(engine)}/environ").read_bytes().split(b"\0")
    pairs = dict(entry.decode().partition("=")[::2] for entry in environment)
    return pairs.get("GLIBC_TUNABLES")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_its_allocator_keeps_what_scripts_let_go_of_at_hand_unless_told_otherwise(
    engine: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    await engine.start()
    assert _tunables(engine) == module.ALLOCATOR
    await engine.stop()
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=8")
    await engine.start()
    assert _tunables(engine) == "glibc.malloc.tcache_count=8"


async def test_data_is_there_after_stop_and_start(engine: EmbeddedValkey) -> None:
    await engine.start()
    with _client(engine) as client:
        client.set("k", "v")
    await engine.stop()
    assert not _alive(engine)
    await engine.start()
    with _client(engine) as client:
        assert client.get("k") == b"v"


async def test_start_and_stop_are_idempotent(engine: EmbeddedValkey) -> None:
    await engine.stop()
    await engine.start()
    first = _pid(engine)
    await engine.start()
    assert _pid(engine) == first
    await engine.stop()
    await engine.stop()


async def test_only_its_user_can_reach_the_socket(engine: EmbeddedValkey) -> None:
    await engine.start()
    path = Path(engine.url.removeprefix("unix://"))
    assert [stat.S_IMODE(os.stat(p).st_mode) for p in (path.parent, path)] == [0o700, 0o600]


async def test_a_path_too_long_for_a_socket_gets_a_short_private_one(tmp_path: Path) -> None:
    engine = EmbeddedValkey(tmp_path / ("long" * 20) / ("path" * 20))
    await engine.start()
    directory = Path(engine.url.removeprefix("unix://")).parent
    assert _alive(engine)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    await engine.stop()
    assert not directory.exists()


async def test_a_data_directory_with_blanks_and_quotes_in_its_name_works(tmp_path: Path) -> None:
    engine = EmbeddedValkey(tmp_path / 'my "own" data \\ dir')
    await engine.start()
    assert _alive(engine)
    await engine.stop()
    assert (engine.data_dir / "appendonlydir").is_dir()


async def test_a_second_server_on_the_same_data_is_refused_by_name(engine: EmbeddedValkey) -> None:
    await engine.start()
    second = EmbeddedValkey(engine.data_dir)
    with pytest.raises(StoreRefused, match=f"in use by another server .process {os.getpid()}"):
        await second.start()
    await second.stop()
    assert _alive(engine)


async def test_a_directory_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreRefused, match="data_dir: "):
        await EmbeddedValkey(tmp_path / "file" / "data").start()


async def test_a_valkey_that_dies_is_started_again_with_its_data(engine: EmbeddedValkey) -> None:
    await engine.start()
    with _client(engine) as client:
        client.set("k", "v")
    os.kill(_pid(engine), signal.SIGKILL)
    await eventually(lambda: engine.restarts == 1, "the process is back")
    with _client(engine) as client:
        assert client.get("k") == b"v"
    os.kill(_pid(engine), signal.SIGKILL)
    await eventually(lambda: engine.restarts == 2, "the process is back again")
    assert _alive(engine)


SERVER = """
import asyncio, pathlib, sys
from jobwire_server.store.connection.data_directory import DataDirectory
from jobwire_server.store.connection.engine import EmbeddedValkey
async def main():
    engine = EmbeddedValkey(pathlib.Path(sys.argv[1]))
    await engine.start()
    print(engine.url, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def _orphan(data_dir: Path) -> None:
    """Leave a Valkey behind whose server was killed with -9."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(data_dir), stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    url = (await server.stdout.readline()).decode().strip()
    with redis.Redis.from_url(url) as client:
        client.set("k", "v")
    server.kill()
    # Only the server's own end: the Valkey has inherited nothing of its pipes.
    await server.wait()
    with redis.Redis.from_url(url) as client:
        assert client.ping()


async def test_the_valkey_of_a_killed_server_is_adopted(engine: EmbeddedValkey) -> None:
    await _orphan(engine.data_dir)
    before = int((engine.data_dir / "valkey.pid").read_text())
    await engine.start()
    assert _pid(engine) == before
    with _client(engine) as client:
        assert client.get("k") == b"v"
    await engine.stop()
    assert not _alive(engine)


async def test_an_adopted_valkey_that_dies_is_started_again(engine: EmbeddedValkey) -> None:
    await _orphan(engine.data_dir)
    await engine.start()
    os.kill(_pid(engine), signal.SIGKILL)
    await eventually(lambda: engine.restarts == 1, "the process is back")
    with _client(engine) as client:
        assert client.get("k") == b"v"


async def test_a_frozen_valkey_on_the_data_is_named_and_left_alone(
    engine: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _orphan(engine.data_dir)
    pid = int((engine.data_dir / "valkey.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(module, "PROBE_TIMEOUT_S", 0.1)
    try:
        with pytest.raises(StoreRefused, match="does not answer"):
            await engine.start()
    finally:
        os.kill(pid, signal.SIGCONT)
    monkeypatch.undo()
    await engine.start()
    assert _pid(engine) == pid


async def test_a_tail_that_a_crash_cut_short_is_repaired(engine: EmbeddedValkey) -> None:
    await engine.start()
    with _client(engine) as client:
        for n in range(100):
            client.set(f"k{n}", "v" * 50)
    await engine.stop()
    (tail,) = (engine.data_dir / "appendonlydir").glob("*.incr.aof")
    size = tail.stat().st_size
    with tail.open("r+b") as file:
        file.truncate(size - 20)
    await engine.start()
    with _client(engine) as client:
        assert client.get("k98") == b"v" * 50
        assert client.get("k99") is None
        client.set("after", "the repair")
    await engine.stop()
    await engine.start()
    with _client(engine) as client:
        assert client.get("after") == b"the repair"


async def test_a_spoilt_file_is_refused_with_what_valkey_said(engine: EmbeddedValkey) -> None:
    await engine.start()
    with _client(engine) as client:
        client.set("k", "v" * 100)
        client.set("k2", "v" * 100)
    await engine.stop()
    (tail,) = (engine.data_dir / "appendonlydir").glob("*.incr.aof")
    data = bytearray(tail.read_bytes())
    at = data.index(b"*3")
    data[at : at + 2] = b"??"
    tail.write_bytes(data)
    with pytest.raises(StoreRefused, match="Bad file format"):
        await engine.start()
    assert not engine.running


async def test_start_waits_for_a_long_load_and_says_so(
    engine: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.start()
    with _client(engine) as client:
        pipe = client.pipeline(transaction=False)
        for n in range(5_000):
            pipe.set(f"k{n}", "v")
        pipe.execute()
    await engine.stop()
    # Nothing else makes a load last: Valkey takes these as directives alone.
    plain = EmbeddedValkey._directives
    slow = ["--key-load-delay", "40", "--loading-process-events-interval-bytes", "1024"]
    monkeypatch.setattr(EmbeddedValkey, "_directives", lambda self: plain(self) + slow)
    # The whole load takes longer than any silence that is allowed.
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.3)
    with capture_logs() as logs:
        await engine.start()
    assert "the store is loading its data" in [line["event"] for line in logs]
    with _client(engine) as client:
        assert client.dbsize() == 5_000


def test_it_runs_under_uvloop(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        engine = EmbeddedValkey(tmp_path / "data")
        await engine.start()
        os.kill(_pid(engine), signal.SIGKILL)
        await eventually(lambda: engine.restarts == 1, "the process is back")
        await engine.stop()
        assert not DataDirectory(tmp_path / "data").locked_by_valkey()
        wait_until(lambda: not _alive(engine), "the process is gone")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())

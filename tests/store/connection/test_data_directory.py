"""The bundled store's data directory: any path, and nobody else's eyes."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from jobwire_server.store.connection.connect import StoreRefused, connect
from jobwire_server.store.connection.engine import EmbeddedValkey

from tests.support.users import UNKNOWN_USER, as_unknown_user, needs_root

pytestmark = pytest.mark.processes


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


async def _keeps(data_dir: Path, key: str) -> bytes | None:
    """Start on the directory, leave the key there, and stop; what was under it before."""
    engine = EmbeddedValkey(data_dir)
    await engine.start()
    connection = connect(engine.url)
    try:
        before: bytes | None = await connection.client.set(key, "v", get=True)
    finally:
        await connection.close()
        await engine.stop()
    assert (data_dir / "appendonlydir").is_dir()
    return before


odd = st.text(st.sampled_from("#?%2&+=:@;'\"\\[]*{}~ \t\n\r$é漢\udcff\x7fa-"), min_size=1).filter(
    lambda name: len(os.fsencode(name)) < 60
)


@settings(max_examples=10, deadline=None)
@example(["#"])
@example(["?"])
@example(["%20"])
@example(["[a]", "b*"])
@example(["-", "--port 6379"])
@example(["a\nport 6379\n"])
@example(["ends in a newline\n"])
@example(["no text \udcff"])
@example(["a" * 90, "%41#?" * 10])
@given(st.lists(odd, min_size=1, max_size=2))
def test_any_path_may_be_a_data_directory(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="jwt-") as base:
        data_dir = Path(base, *names)
        assert asyncio.run(_keeps(data_dir, "k")) is None
        assert asyncio.run(_keeps(data_dir, "k")) == b"v"


def test_the_name_of_a_directory_stays_on_one_line_of_a_message(tmp_path: Path) -> None:
    (tmp_path / "a\nb").write_text("")
    with pytest.raises(StoreRefused, match=r"a\\nb/c can't be used: .*; choose a directory"):
        asyncio.run(EmbeddedValkey(tmp_path / "a\nb" / "c").start())


async def test_nobody_else_can_read_what_the_store_writes(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        await _keeps(tmp_path / "data", "k")
    finally:
        os.umask(before)
    assert _mode(tmp_path / "data") == 0o700
    for path in (tmp_path / "data").rglob("*"):
        assert not _mode(path) & 0o077, path


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A data directory of a version that left files open to others."""
    asyncio.run(_keeps(tmp_path / "data", "k"))
    for path in [tmp_path / "data", *(tmp_path / "data").rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tmp_path / "data"


async def test_rights_that_are_wider_are_narrowed_and_told(wide: Path) -> None:
    with capture_logs() as logs:
        assert await _keeps(wide, "k") == b"v"
    assert str(wide) in [line.get("path") for line in logs]
    for path in [wide, *wide.rglob("*")]:
        assert not _mode(path) & 0o077, path


async def test_a_directory_with_other_things_in_it_keeps_its_rights(wide: Path) -> None:
    (wide / "page.html").write_text("")
    (wide / "page.html").chmod(0o644)
    assert await _keeps(wide, "k") == b"v"
    assert (_mode(wide), _mode(wide / "page.html")) == (0o755, 0o644)
    assert not any(_mode(path) & 0o077 for path in (wide / "appendonlydir").iterdir())


async def test_a_shared_directory_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "somebody's").write_text("")
    tmp_path.chmod(0o777)
    with pytest.raises(StoreRefused, match=r"can be written by every user.*chmod o-w"):
        await EmbeddedValkey(tmp_path).start()
    tmp_path.chmod(0o1777)
    await _keeps(tmp_path, "k")


START = """
import asyncio, pathlib, sys
from jobwire_server.store.connection.engine import EmbeddedValkey
async def main():
    engine = EmbeddedValkey(pathlib.Path(sys.argv[1]))
    await engine.start()
    await engine.stop()
try:
    asyncio.run(main())
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def open_base() -> Iterator[Path]:
    """A directory that other users can reach, other than those of pytest."""
    with tempfile.TemporaryDirectory(prefix="jwt-") as base:
        Path(base).chmod(0o755)
        yield Path(base)


def _started_by_another_user(data_dir: Path) -> str:
    done = subprocess.run(
        [*as_unknown_user(), sys.executable, "-c", START, str(data_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


@needs_root
def test_files_of_another_user_are_refused_with_both_users_named(open_base: Path) -> None:
    data_dir = open_base / "data"
    asyncio.run(_keeps(data_dir, "k"))
    data_dir.chmod(0o777)
    said = _started_by_another_user(data_dir)
    assert said.startswith(f"StoreRefused data_dir: {data_dir} can't be used: {data_dir}/lock: ")
    assert f"belongs to user 0, this is user {UNKNOWN_USER}" in said
    data_dir.chmod(0o700)
    said = _started_by_another_user(data_dir)
    assert said.startswith(f"StoreRefused data_dir: {data_dir} can't be used")
    assert "choose a directory that this user can write, with --data-dir" in said


@needs_root
def test_a_volume_that_a_group_may_write_is_used_as_it_is(open_base: Path) -> None:
    data_dir = open_base / "volume"
    data_dir.mkdir()
    os.chown(data_dir, 0, UNKNOWN_USER)
    data_dir.chmod(0o2775)
    assert _started_by_another_user(data_dir) == ""
    assert _mode(data_dir) == 0o2775
    for path in data_dir.rglob("*"):
        assert not _mode(path) & 0o077, path


@pytest.fixture
def small_disk(open_base: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    mount = open_base / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], check=False
    )
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(b"x" * 4096)


@needs_root
@pytest.mark.parametrize("again", [False, True], ids=["first start", "later start"])
def test_a_full_disk_is_called_one(small_disk: Path, again: bool) -> None:
    data_dir = small_disk / "data"
    if again:
        asyncio.run(_keeps(data_dir, "k"))
    _fill(small_disk)
    if again:
        # There is room for no write, and none was needed so far.
        asyncio.run(_keeps_reading(data_dir))
        return
    with pytest.raises(StoreRefused, match=r"the disk is full|make room on its disk"):
        asyncio.run(EmbeddedValkey(data_dir).start())


async def _keeps_reading(data_dir: Path) -> None:
    engine = EmbeddedValkey(data_dir)
    await engine.start()
    with redis.Redis.from_url(engine.url) as client:
        assert client.get("k") == b"v"
    await engine.stop()


@needs_root
def test_a_disk_that_can_only_be_read_is_called_one(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreRefused, match="can't be used: Read-only file system; choose a"):
        asyncio.run(EmbeddedValkey(small_disk / "data").start())

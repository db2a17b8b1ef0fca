"""A server runs as any user, with an account or a home directory or without."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobwire import Client

from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess
from tests.support.users import UNKNOWN_USER, as_unknown_user, needs_root

pytestmark = needs_root

NO_HOME = ("env", "-u", "HOME", "-u", "XDG_DATA_HOME")

Make = Callable[..., ServerProcess]


@pytest.fixture
def make_server() -> Iterator[Make]:
    """A server of the unknown user, without a home directory; not started yet."""
    made: list[ServerProcess] = []

    def make(*flags: str, home: str = "", data_dir: Path | None = None) -> ServerProcess:
        wrapper = (*NO_HOME, *([f"HOME={home}"] if home else []), *as_unknown_user())
        made.append(ServerProcess(*flags, data_dir=data_dir, wrapper=wrapper))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def volume() -> Iterator[Path]:
    """A directory that the unknown user may write as a member of its group, as in containers."""
    path = Path(f"/tmp/jwt-volume-{os.getpid()}")
    path.mkdir()
    os.chown(path, 0, UNKNOWN_USER)
    path.chmod(0o2770)
    yield path
    shutil.rmtree(path)


def _takes_jobs(server: ServerProcess) -> bool:
    with Client(server.address) as client:
        return bool(client.submit("nobody").id)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_user_without_an_account_serves_from_a_directory_that_is_named(
    processes: str, make_server: Make, volume: Path
) -> None:
    server = make_server("--processes", processes, data_dir=volume)
    server.start()
    assert _takes_jobs(server)
    assert server.stop() == 0


def test_a_user_without_an_account_serves_a_store_that_is_named(make_server: Make) -> None:
    store = StoreProcess("valkey", tcp=True)
    try:
        store.start()
        server = make_server("--redis-url", store.url)
        server.start()
        assert _takes_jobs(server)
        assert server.stop() == 0
    finally:
        store.remove()


def test_a_user_without_a_home_is_told_what_to_name(make_server: Make) -> None:
    server = make_server()
    server.spawn()
    assert server.wait() == 2
    assert f"no home directory (this is user {UNKNOWN_USER}): name a directory" in server.log
    assert "--data-dir or JOBWIRE_DATA_DIR" in server.log
    assert "Traceback" not in server.log


def test_a_home_that_can_not_be_written_is_told_with_what_to_name(make_server: Make) -> None:
    server = make_server(home="/")
    server.spawn()
    assert server.wait() == 3
    assert "data_dir: /.local/share/jobwire can't be used: /.local: Permission denied" in server.log
    assert "--data-dir or JOBWIRE_DATA_DIR" in server.log
    assert "Traceback" not in server.log

"""Real stores for every test that wants one, and an end to all that tests start."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator

import pytest

from tests.support import leftovers
from tests.support.stores import Engine, StoreProcess, server_binary

_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def pytest_configure(config: pytest.Config) -> None:
    leftovers.adopt_orphans()
    # A shell starts what it runs in the background with Ctrl-C ignored, and so would start all that
    # tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # of nohup: for this process only
        signal.signal(signal.SIGHUP, lambda number, frame: None)
    # Short, for the paths of sockets; gone with the run, whatever tests leave in it.
    tempfile.tempdir = tempfile.mkdtemp(prefix="jwt-", dir="/tmp")
    atexit.register(_remove, tempfile.tempdir, os.getpid())


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a fork of a test's
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """The tests of a module end what they started; what they did not is ended here and told."""
    before = leftovers.children()
    yield
    left = leftovers.end_leftovers(before)
    assert not left, f"left running by a test of this module: {left}"


@pytest.fixture(scope="module", autouse=True)
def signals_mean_what_they_did() -> Iterator[None]:
    """The tests of a module leave no signal ignored or blocked: all started later would inherit it.

    What they did leave so is made good here, and told.
    """
    before = {number: signal.getsignal(number) for number in _ENDING}
    yield
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING) & _ENDING
    changed = {n.name: repr(signal.getsignal(n)) for n in _ENDING if not _same(n, before[n])}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert not blocked, f"blocked by a test of this module: {blocked}"
    assert not changed, f"set by a test of this module: {changed}"


def _same(number: signal.Signals, handler: object) -> bool:
    # Loops leave the default ones.
    return signal.getsignal(number) in (handler, signal.SIG_DFL)


def _running(engine: Engine, *, shared: bool = False) -> Iterator[StoreProcess]:
    if server_binary(engine) is None:
        pytest.skip(f"no {engine}-server on PATH")
    process = StoreProcess(engine)
    try:
        process.start()
        if shared:
            leftovers.kept.add(process.pid)
        yield process
    finally:
        process.remove()


@pytest.fixture(scope="session")
def valkey() -> Iterator[StoreProcess]:
    """The bundled Valkey, one process for the whole run: start your own to kill it."""
    yield from _running("valkey", shared=True)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[StoreProcess]:
    """The installed Redis, one process for the whole run: start your own to kill it."""
    yield from _running("redis", shared=True)


@pytest.fixture(params=["valkey", "redis"])
def store_engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    engine: Engine = request.param
    return engine


@pytest.fixture
def store_url(store_engine: Engine, request: pytest.FixtureRequest) -> str:
    """The URL of an empty store, once for each engine."""
    name = "valkey" if store_engine == "valkey" else "redis_server"
    process: StoreProcess = request.getfixturevalue(name)
    process.flush()
    return process.url


@pytest.fixture
def valkey_url(valkey: StoreProcess) -> str:
    """The URL of an empty Valkey, for what does not depend on the engine."""
    valkey.flush()
    return valkey.url


@pytest.fixture
def own_store(store_engine: Engine) -> Iterator[StoreProcess]:
    """A store of this test alone, once for each engine, to kill, freeze and restart."""
    yield from _running(store_engine)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(report: object) -> Generator[None, object, object]:
    """Spells out what a process of a parallel run can't tell the others, half a character say."""
    return _speakable((yield))


def _speakable(told: object) -> object:
    match told:
        case str():
            return told.encode(errors="backslashreplace").decode()
        case list() | tuple():
            return type(told)(map(_speakable, told))
        case dict():
            return {_speakable(name): _speakable(value) for name, value in told.items()}
    return told

"""Real stores for every test that wants one, and an end to all that tests start."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
import redis.utils

from tests.support import leftovers
from tests.support.stores import Engine, StoreProcess, server_binary

_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

_PROCESS_ROOMS = {"benchmarks", "cli", "e2e", "faults", "fuzz", "host", "packaging", "soak"}
_STORE_ROOMS = {"store", "support"}
_PROCESS_FIXTURES = {"broker_address", "own_store"}
_STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}
"""Audit events."""
_may_start = True
"""The test that runs may start processes."""


# How long an example takes says more about the machine than about what is tested.
hypothesis.settings.register_profile("jobwire", deadline=None)
hypothesis.settings.load_profile("jobwire")


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until all tests are collected: each of them stays
    leftovers.adopt_orphans()
    # Each client that tests open looks it up on disk: half of the CPU of a short test.
    redis.utils.get_lib_version = functools.cache(redis.utils.get_lib_version)
    # A shell starts what it runs in the background with Ctrl-C ignored, and so would start all that
    # tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # of nohup: for this process only
        signal.signal(signal.SIGHUP, lambda number, frame: None)
    # Short, for the paths of sockets; gone with the run, whatever tests leave in it.
    tempfile.tempdir = tempfile.mkdtemp(prefix="jwt-", dir="/tmp")
    atexit.register(_remove, tempfile.tempdir, os.getpid())
    sys.addaudithook(_watch_starts)


@pytest.hookimpl(tryfirst=True)  # before some are left out by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts processes, where that is to be seen without running it."""
    for item in items:
        room = _room(item.path)
        fixtures: set[str] = {*getattr(item, "fixturenames", ())}
        if room in _PROCESS_ROOMS or not _PROCESS_FIXTURES.isdisjoint(fixtures):
            item.add_marker(pytest.mark.processes)


@functools.cache
def _room(path: Path) -> str:
    return path.relative_to(Path(__file__).parent).parts[0]


def _watch_starts(event: str, arguments: tuple[object, ...]) -> None:
    if event in _STARTS and not _may_start:
        raise AssertionError(f"a test that starts processes is marked `processes`: {event}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Hold to the mark: `make check` leaves out what has it."""
    global _may_start
    _may_start = item.get_closest_marker("processes") is not None
    try:
        return (yield)
    finally:
        _may_start = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Charge no later test with what a failed one leaves open: its traceback holds that."""
    failed = item.session.testsfailed
    result = yield
    if item.session.testsfailed > failed:
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):
            vars(sys).pop(name, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
    return result


def pytest_collection_finish() -> None:
    """Keep the collector from looking at thousands of tests again and again.

    With nearly all of the heap frozen it takes what little a test makes for a reason to look at all
    the rest: a twelfth of the CPU of short tests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 100)
    gc.enable()


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run with both engines what stands near to them: scripts, connections, and what is marked."""
    test = metafunc.definition
    chosen = any("store_engine" in mark.args[0] for mark in test.iter_markers("parametrize"))
    if "store_engine" not in metafunc.fixturenames or chosen:
        return
    is_near = (
        _room(test.path) in _STORE_ROOMS or test.get_closest_marker("both_engines") is not None
    )
    metafunc.parametrize("store_engine", ["valkey", "redis"] if is_near else ["valkey"])


@pytest.fixture
def store_url(store_engine: Engine, request: pytest.FixtureRequest) -> str:
    """The URL of an empty store, once for each engine where that makes a difference."""
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
    """A store of this test alone, to kill, freeze and restart."""
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

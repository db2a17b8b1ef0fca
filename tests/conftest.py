"""Real stores for every test that wants one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stores import Engine, StoreProcess, server_binary


def _running(engine: Engine) -> Iterator[StoreProcess]:
    if server_binary(engine) is None:
        pytest.skip(f"no {engine}-server on PATH")
    process = StoreProcess(engine)
    try:
        process.start()
        yield process
    finally:
        process.remove()


@pytest.fixture(scope="session")
def valkey() -> Iterator[StoreProcess]:
    """The bundled Valkey, one process for the whole run: start your own to kill it."""
    yield from _running("valkey")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[StoreProcess]:
    """The installed Redis, one process for the whole run: start your own to kill it."""
    yield from _running("redis")


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

"""How the primary is found, and what leaves the one before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError as StoreAway

from jobwire_server.store.connection.connect import MAX_CONNECTIONS, Connection, connect
from jobwire_server.store.connection.sentinels import newest
from jobwire_server.store.connection.subscriber import Subscriber

from tests.support.sentinels import SentinelStore, role
from tests.support.stores import Engine, StoreProcess
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes


def _says(port: int, epoch: int, *, down: bool = False) -> dict[str, Any]:
    where = {"ip": "h", "port": port, "config-epoch": epoch}
    return where | {"is_master": True, "is_sdown": down, "is_odown": False}


@pytest.mark.parametrize(
    ("states", "found"),
    [
        pytest.param([], None, id="nobody answers"),
        pytest.param([_says(1, 0)], ("h", 1), id="one is enough"),
        pytest.param([_says(1, 0), _says(2, 1), _says(1, 0)], ("h", 2), id="newest of three"),
        pytest.param([_says(1, 0), _says(2, 1, down=True)], None, id="never back to an older one"),
        pytest.param([_says(2, 1, down=True), _says(2, 1)], ("h", 2), id="one can't see it"),
    ],
)
def test_the_newest_configuration_says_where_the_primary_is(
    states: list[dict[str, Any]], found: tuple[str, int] | None
) -> None:
    assert newest(states) == found


@pytest.fixture
def store(store_engine: Engine) -> Iterator[SentinelStore]:
    store = SentinelStore(store_engine)
    try:
        store.start()
        yield store
    finally:
        store.remove()


@pytest.fixture
async def connection(store: SentinelStore) -> AsyncIterator[Connection]:
    connection = connect(store.url)
    yield connection
    await connection.close()


async def _port(connection: Connection) -> int:
    client: Any = connection.client
    answer = await client.config_get("port")
    return int(answer["port"])


def _clients_that_wait(store: StoreProcess) -> int:
    with store.client() as client:
        return int(client.info("clients")["blocked_clients"])


async def test_a_sentinel_that_hangs_holds_up_nobody(
    store: SentinelStore, connection: Connection
) -> None:
    store.sentinels[0].pause()
    try:
        async with asyncio.timeout(1.0):  # less than the wait for a sentinel
            await connection.ping()
    finally:
        store.sentinels[0].resume()


async def test_many_calls_at_once_forget_no_sentinel_and_wait_for_a_connection(
    store: SentinelStore, connection: Connection
) -> None:
    store.sentinels[0].kill()
    await asyncio.gather(*(_port(connection) for _ in range(3 * MAX_CONNECTIONS)))
    store.sentinels[0].start()
    for sentinel in store.sentinels[1:]:
        sentinel.kill()
    client: Any = connection.client
    await client.connection_pool.disconnect()
    assert await _port(connection) == store.primary.port


async def test_after_a_planned_failover_nothing_stays_at_the_old_primary(
    store: SentinelStore, connection: Connection
) -> None:
    heard: list[bytes] = []
    resets: list[None] = []
    subscriber = Subscriber(
        connection, lambda _, data: heard.append(data), lambda: resets.append(None)
    )
    await subscriber.start()
    old, new = store.primary, store.replica
    client: Any = connection.client
    idle = await client.connection_pool.get_connection()
    busy = asyncio.create_task(client.blpop("nothing", 0))
    await eventually(lambda: _clients_that_wait(old) == 1, "a command is under way")
    await subscriber.add(b"news")
    for sentinel in store.sentinels:  # so that no old primary is made a replica meanwhile
        sentinel.slow()
    try:
        await asyncio.to_thread(store.fail_over)
        assert role(old) == "master"
        await connection.ping()
        assert await _port(connection) == new.port
        async with asyncio.timeout(1.0):
            with pytest.raises(StoreAway):
                await busy
        await idle.send_command("CONFIG", "GET", "port")
        assert await idle.read_response() == [b"port", str(new.port).encode()]
        await client.connection_pool.release(idle)
        await eventually(lambda: bool(resets), "the subscription moves")
        await client.execute_command("SPUBLISH", "news", "moved")
        await eventually(lambda: heard == [b"moved"], "the news comes")
    finally:
        await subscriber.stop()


async def test_a_write_to_an_old_primary_that_is_a_replica_finds_the_new_one(
    store: SentinelStore, connection: Connection
) -> None:
    client: Any = connection.client
    await client.set("a", 1)
    old, new = store.primary, store.replica
    for sentinel in store.sentinels:
        sentinel.slow()
    await asyncio.to_thread(store.fail_over)
    with old.client() as raw:  # a sentinel would close the connections to it as well
        raw.replicaof("127.0.0.1", new.port)
    with pytest.raises(StoreAway, match="now a slave"):
        await client.set("a", 2)
    await client.set("a", 3)
    with new.client() as raw:
        assert raw.get("a") == b"3"

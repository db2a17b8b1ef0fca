"""What a store must be before it gets jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from jobwire_server.store.connection.connect import Connection, StoreRefused, connect
from jobwire_server.store.connection.preflight import check_store

from tests.support.stores import Engine, StoreProcess, free_port, server_binary

pytestmark = pytest.mark.processes

Starter = Callable[..., StoreProcess]


@pytest.fixture
def start(store_engine: Engine) -> Iterator[Starter]:
    """Start stores with the directives given."""
    if server_binary(store_engine) is None:
        pytest.skip(f"no {store_engine}-server on PATH")
    processes: list[StoreProcess] = []

    def start(*config: str, tcp: bool = False) -> StoreProcess:
        processes.append(StoreProcess(store_engine, tcp=tcp, config=config))
        processes[-1].start()
        return processes[-1]

    yield start
    for process in processes:
        process.remove()


@pytest.fixture
async def connections() -> AsyncIterator[Callable[[str], Connection]]:
    opened: list[Connection] = []

    def open_(url: str) -> Connection:
        opened.append(connect(url))
        return opened[-1]

    yield open_
    for connection in opened:
        await connection.close()


Opener = Callable[[str], Connection]


async def test_a_good_store_is_described(
    store_url: str, store_engine: Engine, connections: Opener
) -> None:
    info = await check_store(connections(store_url), embedded=True)
    assert (info.engine, info.durability, info.embedded) == (store_engine, "aof everysec", True)
    assert int(info.version.split(".")[0]) >= 7
    assert info.warnings == ()


async def test_an_evicting_store_is_refused_with_the_line_that_mends_it(
    start: Starter, connections: Opener
) -> None:
    store = start("--maxmemory-policy", "allkeys-lru")
    connection = connections(store.url)
    with pytest.raises(StoreRefused, match="CONFIG SET maxmemory-policy noeviction"):
        await check_store(connection)
    await connection.client.execute_command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await check_store(connection)


async def test_a_store_without_persistence_is_refused_unless_allowed(
    start: Starter, connections: Opener
) -> None:
    connection = connections(start("--appendonly", "no", "--save", "").url)
    with pytest.raises(StoreRefused, match="CONFIG SET appendonly yes"):
        await check_store(connection)
    info = await check_store(connection, allow_volatile=True)
    assert info.durability == "none"
    assert "loses every job" in info.warnings[0]


async def test_snapshots_alone_are_taken_with_a_warning(
    start: Starter, connections: Opener
) -> None:
    info = await check_store(connections(start("--appendonly", "no", "--save", "60 1").url))
    assert info.durability == "snapshots (60 1)"
    assert "CONFIG SET appendonly yes" in info.warnings[0]


async def test_weaker_writes_than_asked_for_are_said(start: Starter, connections: Opener) -> None:
    connection = connections(start().url)
    info = await check_store(connection, always=True)
    assert "CONFIG SET appendfsync always" in info.warnings[0]
    await connection.client.execute_command("CONFIG", "SET", "appendfsync", "no")
    info = await check_store(connection)
    assert info.durability == "aof no"
    assert "CONFIG SET appendfsync everysec" in info.warnings[0]


async def test_a_store_that_hides_its_configuration_is_taken_with_what_was_not_checked(
    start: Starter, connections: Opener
) -> None:
    store = start("--rename-command", "CONFIG", "")
    info = await check_store(connections(store.url))
    assert info.durability == "aof"
    assert "does not tell" in info.warnings[0]


async def test_fewer_replicas_than_are_to_be_waited_for_are_said(
    store_url: str, connections: Opener
) -> None:
    info = await check_store(connections(store_url), replicas=2)
    assert info.durability == "aof everysec, wait for 2 replicas"
    assert info.warnings == (
        "wait_replicas is 2, and the store has 0 replicas now: until more follow it, each write is"
        " answered UNAVAILABLE; start replicas, or lower wait_replicas",
    )


async def test_a_store_that_does_not_take_wait_is_refused_where_it_is_needed(
    start: Starter, connections: Opener
) -> None:
    connection = connections(start("--rename-command", "WAIT", "").url)
    await check_store(connection)
    with pytest.raises(StoreRefused, match=r"does not take WAIT .*set wait_replicas to 0"):
        await check_store(connection, replicas=1)


async def test_a_replica_is_refused_and_its_primary_named(
    start: Starter, connections: Opener
) -> None:
    port = free_port()
    replica = start("--replicaof", f"127.0.0.1 {port}")
    with pytest.raises(StoreRefused, match=f"use its primary 127.0.0.1:{port}"):
        await check_store(connections(replica.url))


async def test_a_cluster_node_behind_a_plain_url_is_refused(
    start: Starter, connections: Opener
) -> None:
    node = start("--cluster-enabled", "yes", "--cluster-port", str(free_port()), tcp=True)
    with pytest.raises(StoreRefused, match="redis\\+cluster://"):
        await check_store(connections(node.url))


async def test_a_plain_store_behind_a_cluster_url_is_refused(
    start: Starter, connections: Opener
) -> None:
    store = start(tcp=True)
    with pytest.raises(StoreRefused, match="is not a cluster"):
        await check_store(connections(f"redis+cluster://127.0.0.1:{store.port}"))


async def test_a_wrong_password_is_refused_at_once(start: Starter, connections: Opener) -> None:
    store = start(tcp=True)
    with store.client() as client:
        client.config_set("requirepass", "right")
    for userinfo in ("", ":wrong@"):
        url = f"redis://{userinfo}127.0.0.1:{store.port}/0"
        with pytest.raises(StoreRefused) as refused:
            await check_store(connections(url), wait_s=30)
        assert "wrong" not in refused.value.message.replace("WRONGPASS", "")


async def test_a_store_that_is_down_is_waited_for(own_store: StoreProcess) -> None:
    own_store.kill()
    connection = connect(own_store.url)
    with pytest.raises(StoreRefused, match="can't be reached"):
        await check_store(connection)
    checking = asyncio.create_task(check_store(connection, wait_s=20))
    await asyncio.to_thread(own_store.start)
    assert (await checking).durability == "aof everysec"
    await connection.close()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"redis_version": "6.2.14"}, "redis 7.0 or newer is needed"),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.5"}, "valkey 8.0 or newer is needed"),
        ({"redis_version": "7.2.4", "redis_mode": "sentinel"}, "redis\\+sentinel://"),
    ],
)
async def test_what_no_store_at_hand_answers_is_judged_by_its_info(
    answer: dict[str, str], says: str
) -> None:
    from jobwire_server.store.connection.preflight import _check_node

    class Old:
        async def execute_command(self, *_: str) -> dict[str, str]:
            return answer

    with pytest.raises(StoreRefused, match=says):
        await _check_node(Old(), allow_volatile=False, always=False)  # type: ignore[arg-type]

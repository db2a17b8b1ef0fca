"""From URLs to clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError

from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.store.connection.connect import connect, redacted
from jobwire_server.store.connection.sending import _Cancellable

from tests.support.stores import StoreProcess, free_port, wait_until


async def test_a_standalone_url_gives_a_client_that_answers_in_bytes(store_url: str) -> None:
    connection = connect(store_url)
    await connection.client.set("k", b"\xff")
    assert await connection.client.get("k") == b"\xff"
    assert connection.kind == "standalone"
    await connection.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost", "is none of"),
        ("localhost:6379", "is none of"),
        ("redis://localhost:6379/0?socket_timeot=3", "socket_timeot"),
        ("redis://localhost:port/0", "port"),
        ("redis+sentinel://a:1,b:2", "the service's name is missing"),
        ("redis+cluster://a:1,b:x", "'b:x' is not HOST:PORT"),
    ],
)
def test_a_wrong_url_is_refused_with_the_forms_that_there_are(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        connect(url)
    assert says in refused.value.message
    assert "redis+sentinel://HOST:PORT" in refused.value.message


def test_passwords_do_not_appear_in_what_is_logged() -> None:
    assert redacted("redis://me:secret@h:1/0") == "redis://me:***@h:1/0"
    assert redacted("redis://:secret@h:1/0") == "redis://:***@h:1/0"
    assert "secret" not in redacted("redis+sentinel://h:1/s?db=1&sentinel_password=secret&x=1")
    assert redacted("unix:///tmp/s?db=1") == "unix:///tmp/s?db=1"


def test_a_sentinel_url_keeps_its_options_apart() -> None:
    connection = connect(
        "redis+sentinel://u:p%40@a:1,[::1]:2,c/main?db=3&sentinel_password=s&socket_timeout=9"
    )
    assert connection.sentinel is not None
    kwargs = connection.client.connection_pool.connection_kwargs  # type: ignore[union-attr]
    assert (kwargs["username"], kwargs["password"], kwargs["db"]) == ("u", "p@", 3)
    assert kwargs["socket_timeout"] == 9
    addresses = [
        (s.connection_pool.connection_kwargs["host"], s.connection_pool.connection_kwargs["port"])
        for s in connection.sentinel.sentinels
    ]
    assert addresses == [("a", 1), ("::1", 2), ("c", 26379)]
    assert connection.sentinel.sentinels[0].connection_pool.connection_kwargs["password"] == "s"


async def test_a_command_whose_answer_is_lost_is_not_sent_again(own_store: StoreProcess) -> None:
    connection = connect(own_store.url + "?socket_timeout=0.2")
    await connection.client.set("n", 0)
    own_store.pause()
    with pytest.raises(Exception, match="Timeout"):
        await connection.client.incr("n")
    own_store.resume()
    with own_store.client() as client:
        wait_until(lambda: client.get("n") != b"0", "the frozen store has read the command")
        assert client.get("n") == b"1"
    await connection.close()


async def test_the_client_finds_the_store_again_after_a_restart(own_store: StoreProcess) -> None:
    connection = connect(own_store.url)
    await connection.ping()
    own_store.kill()
    with pytest.raises(RedisConnectionError):
        await connection.ping()
    own_store.start()
    await connection.ping()
    await connection.close()


@pytest.fixture
async def cluster() -> AsyncIterator[StoreProcess]:
    """A cluster of one Valkey node that serves all slots."""
    process = StoreProcess("valkey", tcp=True, config=_cluster_config())
    process.start()
    try:
        with process.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(
                lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok",
                "the cluster is complete",
            )
        yield process
    finally:
        process.remove()


def _cluster_config() -> tuple[str, ...]:
    return ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))


async def test_a_cluster_url_routes_each_key_to_its_node(cluster: StoreProcess) -> None:
    connection = connect(f"redis+cluster://127.0.0.1:{cluster.port}")
    assert isinstance(connection.client, RedisCluster)
    await connection.ping()
    await connection.client.set("{q}:k", b"v")
    assert await connection.client.get("{q}:k") == b"v"
    assert await connection.node_of(b"{q}:events") == f"127.0.0.1:{cluster.port}"
    await connection.close()


async def test_a_loop_of_commands_ends_at_its_first_cancellation(store_url: str) -> None:
    connection = connect(store_url)
    await connection.ping()

    async def beat() -> None:
        while True:
            await connection.client.ping()

    for steps in range(60):  # the cancellation hits each moment of a command in turn
        beating = asyncio.create_task(beat())
        for _ in range(steps % 20):
            await asyncio.sleep(0)
        beating.cancel()
        done, _ = await asyncio.wait({beating}, timeout=2)
        assert done, f"it goes on after a cancellation at step {steps}"
    await connection.close()


async def test_every_kind_of_connection_can_be_cancelled(cluster: StoreProcess) -> None:
    """The class is replaced for each kind, also on cluster nodes that are found later."""
    for url in (
        "redis://h",
        "rediss://h",
        "unix:///s",
        "redis+sentinel://h/s",
        "rediss+sentinel://h/s",
    ):
        connection = connect(url)
        assert isinstance(connection.dedicated(""), _Cancellable), url
        await connection.close()
    connection = connect(f"redis+cluster://127.0.0.1:{cluster.port}")
    node = await connection.node_of(b"{q}")
    assert isinstance(connection.dedicated(node), _Cancellable)
    await connection.client.set("k", "v")
    for found in (*connection.client.get_nodes(), *connection.client.startup_nodes):  # type: ignore[union-attr]
        # The library has no other word for the connections of a node.
        assert all(isinstance(c, _Cancellable) for c in found._connections)
    await connection.close()

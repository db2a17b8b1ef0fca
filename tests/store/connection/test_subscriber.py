"""Shard channels over every kind of loss."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.store.connection import link as link_module
from jobwire_server.store.connection import subscriber as module
from jobwire_server.store.connection.connect import Connection, connect
from jobwire_server.store.connection.subscriber import Subscriber

from tests.support.stores import StoreProcess
from tests.support.waiting import eventually


class Recorder:
    """A subscriber with what it was told."""

    def __init__(self, connection: Connection) -> None:
        self.messages: list[tuple[bytes, bytes]] = []
        self.resets = 0
        self.subscriber = Subscriber(connection, self._message, self._reset)

    def _message(self, channel: bytes, data: bytes) -> None:
        self.messages.append((channel, data))
        if data == b"poison":
            raise ValueError("a defect")

    def _reset(self) -> None:
        self.resets += 1


@asynccontextmanager
async def _recording(connection: Connection) -> AsyncIterator[Recorder]:
    recorder = Recorder(connection)
    await recorder.subscriber.start()
    try:
        yield recorder
    finally:
        await recorder.subscriber.stop()
        await connection.close()


@pytest.fixture
async def connection(store_url: str) -> Connection:
    return connect(store_url)


@pytest.fixture
async def recorder(connection: Connection) -> AsyncIterator[Recorder]:
    async with _recording(connection) as recorder:
        yield recorder


async def _publish(connection: Connection, channel: bytes, data: bytes) -> int:
    count: int = await connection.client.execute_command("SPUBLISH", channel, data)
    return count


async def test_nothing_published_after_add_returned_is_missed(
    connection: Connection, recorder: Recorder
) -> None:
    for n in range(20):
        channel = b"{q%d}:events" % n
        await recorder.subscriber.add(channel)
        assert await _publish(connection, channel, b"x") == 1
    await eventually(lambda: len(recorder.messages) == 20, "all messages are here")
    assert recorder.resets == 0


async def test_messages_of_a_channel_keep_their_order(
    connection: Connection, recorder: Recorder
) -> None:
    await recorder.subscriber.add(b"c")
    for n in range(200):
        await _publish(connection, b"c", b"%d" % n)
    await eventually(lambda: len(recorder.messages) == 200, "all messages are here")
    assert [data for _, data in recorder.messages] == [b"%d" % n for n in range(200)]


async def test_a_removed_channel_falls_silent_and_can_be_added_again(
    connection: Connection, recorder: Recorder
) -> None:
    await recorder.subscriber.add(b"a")
    await recorder.subscriber.add(b"b")
    await recorder.subscriber.remove(b"a")
    await recorder.subscriber.remove(b"never added")
    await recorder.subscriber.add(b"b2")  # answered after the removal, on the same connection
    assert await _publish(connection, b"a", b"x") == 0
    await recorder.subscriber.add(b"a")
    assert await _publish(connection, b"a", b"y") == 1
    await eventually(lambda: (b"a", b"y") in recorder.messages, "the message is here")


async def test_a_defect_in_the_handler_of_one_message_does_not_end_the_others(
    connection: Connection, recorder: Recorder
) -> None:
    await recorder.subscriber.add(b"c")
    await _publish(connection, b"c", b"poison")
    await _publish(connection, b"c", b"good")
    await eventually(lambda: (b"c", b"good") in recorder.messages, "the second message is here")


async def test_a_lost_connection_is_followed_by_one_reset_with_all_channels_back(
    connection: Connection, recorder: Recorder
) -> None:
    for n in range(10):
        await recorder.subscriber.add(b"c%d" % n)
    await connection.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await eventually(lambda: recorder.resets == 1, "the reset was told")
    for n in range(10):
        assert await _publish(connection, b"c%d" % n, b"x") == 1
    await eventually(lambda: len(recorder.messages) == 10, "all messages are here")
    assert recorder.resets == 1


async def test_a_channel_added_while_the_store_is_down_is_confirmed_when_it_is_back(
    own_store: StoreProcess,
) -> None:
    connection = connect(own_store.url)
    async with _recording(connection) as recorder:
        await recorder.subscriber.add(b"old")
        own_store.kill()
        adding = asyncio.create_task(recorder.subscriber.add(b"new"))
        await asyncio.to_thread(own_store.start)
        await adding
        await eventually(lambda: recorder.resets == 1, "the reset was told")
        assert await _publish(connection, b"old", b"x") == 1
        assert await _publish(connection, b"new", b"x") == 1


async def test_add_gives_up_when_the_store_stays_away(
    own_store: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONFIRM_TIMEOUT_S", 0.2)
    own_store.kill()
    async with _recording(connect(own_store.url)) as recorder:
        with pytest.raises(StoreUnavailable):
            await recorder.subscriber.add(b"c")


async def test_a_store_that_falls_silent_counts_as_lost(
    own_store: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "QUIET_S", 0.2)
    connection = connect(own_store.url)
    async with _recording(connection) as recorder:
        await recorder.subscriber.add(b"c")
        with own_store.client() as client:
            await eventually(
                lambda: client.info("commandstats").get("cmdstat_ping", {}).get("calls", 0) >= 3,
                "the quiet connection was tried several times",
            )
        assert recorder.resets == 0
        with capture_logs() as logs:
            own_store.pause()
            await eventually(
                lambda: any("subscriptions lost" in entry["event"] for entry in logs),
                "the silence is noticed",
            )
        own_store.resume()
        await eventually(lambda: recorder.resets == 1, "the reset was told")


async def test_stop_tolerates_never_started_and_twice(connection: Connection) -> None:
    recorder = Recorder(connection)
    await recorder.subscriber.stop()
    await recorder.subscriber.stop()
    with pytest.raises(StoreUnavailable):
        await recorder.subscriber.add(b"c")
    await connection.close()

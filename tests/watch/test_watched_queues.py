"""Subscriptions of watched queues: they end when nobody watches, and never under somebody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.store import keys
from jobwire_server.store.connection.subscriber import Subscriber
from jobwire_server.store.reads import ReadStore
from jobwire_server.watch import job_watch as watch_module
from jobwire_server.watch import watched_queue as queue_module
from jobwire_server.watch.watched_queue import WatchedQueue

from tests.support.brokers import Broker
from tests.support.waiting import eventually

EVENTS, OUTPUTS = keys.events_channel("default"), keys.outputs_channel("default")


class _Nobody:
    """Keeps a queue watched."""

    def changed(self, ulids: list[str], log_id: str) -> None: ...

    def reset(self) -> None: ...


def _heard(broker: Broker) -> set[str]:
    return {
        name.decode() if isinstance(name, bytes) else name
        for name in broker.client.pubsub_shardchannels("jw:*")
    }


async def test_a_watcher_that_comes_while_a_queue_is_left_hears_all_of_it(
    valkey_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, notices = valkey_broker.parts.job_watch, valkey_broker.parts.notices
    former = await watch.enter("default")
    remove = Subscriber.remove
    entered: list[WatchedQueue] = []

    async def remove_slowly(self: Subscriber, channel: bytes) -> None:
        await remove(self, channel)
        if not entered:
            entered.append(await watch.enter("default"))
            entered[0].watch_many(_Nobody())

    monkeypatch.setattr(Subscriber, "remove", remove_slowly)
    monkeypatch.setattr(watch_module, "LINGER_S", 0.05)
    # So that the sweeper looks at once, and soon again.
    await watch.sweeper.stop()
    watch.start()
    await eventually(lambda: bool(entered), "the former subscription is given up")
    await eventually(lambda: not former.watched, "what was read for it is given up as well")
    assert _heard(valkey_broker) >= {EVENTS, OUTPUTS}
    assert all(notices.listeners(name) for name in (EVENTS, OUTPUTS))


async def test_a_subscription_that_fails_half_way_leaves_no_listener_behind(
    valkey_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, notices = valkey_broker.parts.job_watch, valkey_broker.parts.notices
    add = Subscriber.add

    async def refuse_events(self: Subscriber, channel: bytes) -> None:
        if channel == EVENTS.encode():
            raise StoreUnavailable("not now")
        await add(self, channel)

    monkeypatch.setattr(Subscriber, "add", refuse_events)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await watch.enter("default")
    monkeypatch.setattr(Subscriber, "add", add)
    await watch.enter("default")
    assert [notices.listeners(name) for name in (EVENTS, OUTPUTS)] == [1, 1]


async def test_a_look_at_all_that_is_watched_brings_about_no_other(
    valkey_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    follow = ReadStore.follow

    async def count(self: ReadStore, *arguments: Any) -> list[Any]:
        nonlocal reads
        reads += 1
        return await follow(self, *arguments)

    monkeypatch.setattr(ReadStore, "follow", count)
    (ulid,) = await valkey_broker.submit()
    queue = await valkey_broker.parts.job_watch.enter("default")
    queue.watch_job(ulid, output=False)
    monkeypatch.setattr(queue_module, "REFRESH_S", 0.1)
    queue.reset()
    await eventually(lambda: reads > 4, "looks by the clock")
    monkeypatch.setattr(queue_module, "REFRESH_S", 60.0)
    # Nor does one that is asked for while another one begins.
    for _ in range(5):
        queue.reset()
        await asyncio.sleep(0)
    await asyncio.sleep(0.5)
    assert reads < 15

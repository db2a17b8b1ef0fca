"""Subscriptions of watched queues: they end when nobody watches, and never under somebody."""

from __future__ import annotations

import asyncio

import pytest

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.store import keys
from jobwire_server.watch import job_watch as hub_module
from jobwire_server.watch.watched_queue import Room

from tests.support.brokers import Broker
from tests.support.waiting import eventually

EVENTS, OUTPUTS = keys.events_channel("default"), keys.outputs_channel("default")


class _Nobody:
    """Keeps a room occupied."""

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
    hub, notices = valkey_broker.router._hub, valkey_broker.router._notices
    former = await hub.enter("default")
    remove = notices._subscriber.remove
    entered: list[Room] = []

    async def remove_slowly(channel: bytes) -> None:
        await remove(channel)
        if not entered:
            entered.append(await hub.enter("default"))
            entered[0].many.add(_Nobody())

    monkeypatch.setattr(notices._subscriber, "remove", remove_slowly)
    monkeypatch.setattr(hub_module, "LINGER_S", 0.05)
    assert hub._sweeper is not None
    hub._sweeper.cancel()
    await asyncio.gather(hub._sweeper, return_exceptions=True)
    hub._sweeper = None
    hub.start()
    await eventually(lambda: bool(entered) and former._task.done(), "the former room is closed")
    assert _heard(valkey_broker) >= {EVENTS, OUTPUTS}
    assert {name.decode() for name in notices._listeners} >= {EVENTS, OUTPUTS}


async def test_a_subscription_that_fails_half_way_leaves_no_listener_behind(
    valkey_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, notices = valkey_broker.router._hub, valkey_broker.router._notices
    add = notices._subscriber.add

    async def refuse_events(channel: bytes) -> None:
        if channel == EVENTS.encode():
            raise StoreUnavailable("not now")
        await add(channel)

    monkeypatch.setattr(notices._subscriber, "add", refuse_events)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await hub.enter("default")
    monkeypatch.setattr(notices._subscriber, "add", add)
    await hub.enter("default")
    assert [len(notices._listeners[name.encode()]) for name in (EVENTS, OUTPUTS)] == [1, 1]

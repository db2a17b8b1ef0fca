"""The dispatcher of one queue: no wake-up is lost, and no claim is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import pytest

from jobwire_server.domain.model import Assignment
from jobwire_server.workers.demand import Demand
from jobwire_server.workers.dispatcher import QueueDispatcher

from tests.support.brokers import Broker, running_broker
from tests.support.jobs import worker_spec
from tests.support.stores import StoreProcess
from tests.support.waiting import eventually

SOON_S = 1.2
"""Below the interval at which dispatchers look without being woken."""


class _Taker(Demand):
    """Takes what it is given, unless it was told to seem ready and take nothing."""

    def __init__(self, worker_id: str) -> None:
        super().__init__(worker_spec(worker_id), 30_000, 1)
        self.got: list[Assignment] = []
        self.blocked = False

    def reserve(self, most: int, queue: str) -> int:
        return 0 if self.blocked else super().reserve(most, queue)

    def deliver(self, assignments: list[Assignment]) -> bool:
        self.got += assignments
        return True


def _blocks(dispatcher: QueueDispatcher, taker: _Taker) -> None:
    """As a worker on a stream whose credit in bytes is used up."""


def _leaves(dispatcher: QueueDispatcher, taker: _Taker) -> None:
    """As a long poll that ends."""
    taker.closed = True
    dispatcher.withdraw(taker)


def _closes(dispatcher: QueueDispatcher, taker: _Taker) -> None:
    """As a stream that is drained."""
    taker.closed = True


@pytest.mark.parametrize("fails", [_blocks, _leaves, _closes])
async def test_a_job_goes_to_the_next_when_the_one_who_was_woken_for_it_does_not_take_it(
    valkey_broker: Broker,
    fails: Callable[[QueueDispatcher, _Taker], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The route has to be known, or its first job wakes everybody.
    await valkey_broker.register("w0")
    await valkey_broker.submit()
    await valkey_broker.claim("w0")
    await valkey_broker.parts.dispatchers.stop()
    dispatcher = valkey_broker.parts.dispatchers.of("default")
    first, second = _Taker("w1"), _Taker("w2")
    hear = dispatcher.notice

    def hear_and_fail(data: bytes) -> None:
        hear(data)
        fails(dispatcher, first)

    monkeypatch.setattr(dispatcher, "notice", hear_and_fail)
    dispatcher.offer(first)
    dispatcher.offer(second)
    await eventually(
        lambda: (
            [*dispatcher.demands.idle] == [first, second] and not dispatcher.demands.wake.is_set()
        ),
        "both wait for jobs",
    )
    first.blocked = True
    began = monotonic()
    await valkey_broker.submit()
    await eventually(lambda: bool(second.got), "the job reaches the second")
    assert monotonic() - began < SOON_S
    assert not first.got


async def test_a_claim_that_is_under_way_when_the_server_stops_leaves_no_job_leased(
    own_store: StoreProcess,
) -> None:
    async with running_broker(own_store.url) as broker:
        await broker.register()
        await broker.submit()
        await broker.claim()
        (ulid,) = await broker.submit()
        own_store.pause()
        poll = asyncio.create_task(broker.claim(wait_ms=60_000))
        await eventually(
            lambda: [demand.free for demand in broker.parts.waiting] == [0],
            "the claim is under way",
        )
        stop = asyncio.create_task(broker.router.stop())
        await eventually(poll.done, "the poll was ended")
        own_store.resume()
        await stop
        assert await poll == []
        with own_store.client() as client:
            state, crashes, attempts = client.hmget(f"jw:{{default}}:j:{ulid}", "s", "c", "n")
            # Given back untouched, or never claimed.
            assert state in (None, b"2")
            assert crashes is None
            assert attempts in (None, b"0")

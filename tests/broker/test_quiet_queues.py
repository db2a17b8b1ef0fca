"""Queues that nobody writes to cost nothing, and what is due there happens all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from jobwire_server.broker import announcements, queue_clock
from jobwire_server.domain.model import JobState
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store import keys
from jobwire_server.workers import dispatcher

from tests.support.brokers import Broker, running_broker
from tests.support.jobs import new_job, ulid_of, worker_spec
from tests.support.stores import StoreProcess
from tests.support.waiting import eventually

OPTIONS = BrokerOptions(tick_ms=50)


@pytest.fixture(autouse=True)
def _quiet_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_clock, "MAY_BE_QUIET_S", 0.4)
    monkeypatch.setattr(queue_clock, "QUIET_S", 0.8)
    monkeypatch.setattr(announcements, "STIR_S", 0.1)


@pytest.fixture
async def two(valkey_url: str) -> AsyncIterator[tuple[Broker, Broker]]:
    """Two servers on one store."""
    async with AsyncExitStack() as stack:
        yield (
            await stack.enter_async_context(running_broker(valkey_url, OPTIONS, server_id="s1")),
            await stack.enter_async_context(running_broker(valkey_url, OPTIONS, server_id="s2")),
        )


def _clocks(broker: Broker) -> dict[str, queue_clock.QueueClock]:
    return broker.parts.clocks.by_queue


async def _all_quiet(broker: Broker, queues: int = 1) -> None:
    await eventually(
        lambda: (
            len(_clocks(broker)) == queues and all(each.quiet for each in _clocks(broker).values())
        ),
        "every queue is quiet",
    )


async def _until_due(broker: Broker, ulid: str) -> None:
    """The job is no longer SCHEDULED, but PENDING."""
    async with asyncio.timeout(10):
        while await broker.state(ulid) is JobState.SCHEDULED:  # noqa: ASYNC110 - of the store
            await asyncio.sleep(0.01)
    assert await broker.state(ulid) is JobState.PENDING


def _calls(broker: Broker) -> int:
    """How many scripts the store has run."""
    return int(broker.client.info("commandstats")["cmdstat_evalsha"]["calls"])


async def test_quiet_queues_are_not_looked_at(two: tuple[Broker, Broker]) -> None:
    one, other = two
    queues = 50
    for number in range(queues):
        await one.submit(new_job(queue=f"q{number}"))
    await _all_quiet(one, queues)
    await _all_quiet(other, queues)
    before = _calls(one)
    told = one.parts.announcements.heard_ms
    await eventually(lambda: one.parts.announcements.heard_ms > told + 1_000, "a second has passed")
    # With a look at each tick it would be a thousand for each server. What is left are the
    # servers' exchanges, one each in a tenth of a second, and their reapers.
    assert _calls(one) - before < queues


async def test_a_server_hears_of_a_write_to_a_quiet_queue_though_the_writer_dies_at_once(
    two: tuple[Broker, Broker],
) -> None:
    one, other = two
    await one.submit()
    await _all_quiet(one)
    await _all_quiet(other)
    (ulid,) = await one.submit(new_job(delay_ms=300))
    # As dead as it gets: nothing that it might still say is said.
    await one.parts.announcements.stop()
    await one.parts.clocks.stop()
    await eventually(lambda: not _clocks(other)["default"].quiet, "the other has heard")
    await _until_due(other, ulid)


async def test_what_is_due_in_a_quiet_queue_happens_when_it_is_due(
    two: tuple[Broker, Broker],
) -> None:
    one, other = two
    (ulid,) = await one.submit(new_job(delay_ms=2_000))
    await _all_quiet(one)
    await _all_quiet(other)
    assert await other.state(ulid) is JobState.SCHEDULED
    await _until_due(other, ulid)


async def test_jobs_of_a_quiet_queue_are_forgotten_when_their_retention_ends(
    valkey_url: str,
) -> None:
    options = replace(OPTIONS, retain_ended_ms=3_000)
    async with running_broker(valkey_url, options) as broker:
        (ulid,) = await broker.submit()
        await broker.router.cancel_job("default", ulid, "")
        await _all_quiet(broker)
        assert f"r:{ulid}" in broker.dump()
        await eventually(lambda: f"r:{ulid}" not in broker.dump(), "it is forgotten")


async def test_settings_that_change_in_a_quiet_queue_hold_on_every_server(
    two: tuple[Broker, Broker],
) -> None:
    one, other = two
    await one.submit()
    await _all_quiet(one)
    await _all_quiet(other)
    before = other.parts.settings.known("default")
    await one.router.operators.set_paused("default", paused=True)
    await eventually(lambda: not _clocks(other)["default"].quiet, "the other looks again")
    assert other.parts.settings.known("default") == before


async def test_a_queue_that_another_server_created_is_kept_soon(
    two: tuple[Broker, Broker],
) -> None:
    one, other = two
    await one.submit(new_job(queue="new"))
    await eventually(lambda: "new" in _clocks(other), "the other keeps it", timeout_s=5)


async def test_names_that_nobody_created_are_not_announced(valkey_url: str) -> None:
    async with running_broker(valkey_url, OPTIONS) as broker:
        (ulid,) = await broker.submit()
        with pytest.raises(Exception, match="made-up"):
            await broker.router.cancel_job("made-up", ulid, "")
        await _all_quiet(broker)
        assert broker.client.zrange(keys.REGISTRY + "stirred", 0, -1) == [b"default"]


async def test_the_rates_of_a_quiet_queue_are_zero(valkey_url: str) -> None:
    async with running_broker(valkey_url, OPTIONS) as broker:
        await broker.submit()
        await _all_quiet(broker)
        broker.shift(3_600_000)
        queue = await broker.router.operators.get_queue("default")
        assert queue.now_ms - queue.samples[0][0] > 0


async def test_after_the_clock_was_set_every_queue_is_looked_at(valkey_url: str) -> None:
    async with running_broker(valkey_url, OPTIONS) as broker:
        (ulid,) = await broker.submit(new_job(delay_ms=3_600_000))
        await _all_quiet(broker)
        broker.shift(3_600_000)
        await _until_due(broker, ulid)


async def test_after_the_store_was_away_every_queue_is_looked_at(own_store: StoreProcess) -> None:
    async with running_broker(own_store.url, OPTIONS) as broker:
        await broker.submit()
        await _all_quiet(broker)
        own_store.wait_written()
        own_store.kill()
        await eventually(lambda: not _clocks(broker)["default"].quiet, "it has noticed")
        own_store.start()
        await _all_quiet(broker)


async def test_writes_go_on_where_nothing_can_be_announced(
    valkey_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = valkey_broker
    await broker.submit()
    activity = broker.parts.activity
    # The registry's key is of a kind that the script can't use, as good as away.
    broker.client.set(keys.REGISTRY + "stirred", "spoilt")
    await eventually(lambda: activity.deaf, "it has noticed")
    activity.may_be_quiet(keys.queue_prefix("default"))
    (answer,) = await broker.submitted(new_job())
    assert ulid_of(answer.job_id)


async def test_a_server_that_starts_looks_once_at_queues_that_nobody_announced(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_broker(valkey_url, OPTIONS) as one:
        for number in range(5):
            await one.submit(new_job(queue=f"q{number}"))
        (due,) = await one.submit(new_job(queue="q0", delay_ms=3_000))
        await _all_quiet(one, 5)
        one.client.delete(keys.REGISTRY + "stirred")
    monkeypatch.setattr(queue_clock, "QUIET_S", 3_600)
    async with running_broker(valkey_url, OPTIONS, server_id="s2") as other:
        await _all_quiet(other, 5)
        async with asyncio.timeout(10):
            while await other.state(due, "q0") is JobState.SCHEDULED:  # noqa: ASYNC110 - of the store
                await asyncio.sleep(0.01)
        (ulid,) = await other.submit(new_job(queue="q1"))
        await eventually(lambda: not _clocks(other)["q1"].quiet, "it is in use")
        assert await other.state(ulid, "q1") is JobState.PENDING


async def test_where_many_queues_are_in_use_each_is_looked_at_less_often(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_clock, "MAY_BE_QUIET_S", 60)
    monkeypatch.setattr(queue_clock, "QUIET_S", 60)
    monkeypatch.setattr(queue_clock, "LOOKS_A_SECOND", 1)
    async with running_broker(valkey_url, OPTIONS) as broker:
        for number in range(20):
            await broker.submit(new_job(queue=f"q{number}"))
        before, told = _calls(broker), broker.parts.announcements.heard_ms
        heard = broker.parts.announcements
        await eventually(lambda: heard.heard_ms > told + 1_000, "a second has passed")
        # Twenty looks a second at each would be four hundred.
        assert _calls(broker) - before < 120
        # What is known to be due happens when it is due all the same.
        (ulid,) = await broker.submit(new_job(queue="q0", delay_ms=100))
        async with asyncio.timeout(0.9):
            while await broker.state(ulid, "q0") is JobState.SCHEDULED:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_worker_of_queues_that_nobody_writes_to_costs_nothing_and_misses_nothing(
    two: tuple[Broker, Broker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "POLL_S", 0.05)
    one, other = two
    names = tuple(f"q{number}" for number in range(30))
    await one.submit(new_job(queue="q0", operation="other"))
    spec = replace(worker_spec("w1"), queues=names)
    await one.router.register_worker(spec)
    claiming = asyncio.create_task(one.claim("w1", wait_ms=60_000))
    await _all_quiet(one)
    await _all_quiet(other)
    before, told = _calls(one), one.parts.announcements.heard_ms
    await eventually(lambda: one.parts.announcements.heard_ms > told + 1_000, "a second has passed")
    # With a poll each, six hundred.
    assert _calls(one) - before < 60
    # Private: its notice is lost, and the announcement is not, which no store does on request.
    one.parts.notices._listeners.clear()  # type: ignore[attr-defined]
    await other.submit(new_job(queue="q7"))
    (claimed,) = await asyncio.wait_for(claiming, 5)
    assert claimed.job_id.startswith("q7-")


async def test_few_clocks_look_at_once_however_many_queues_there_are(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_clock, "LOOKS_AT_ONCE", 3)
    looking = most = looks = 0
    async with running_broker(valkey_url, OPTIONS) as broker:
        tick = broker.parts.upkeep.tick

        async def count(*args: Any, **named: Any) -> Any:
            nonlocal looking, most, looks
            looking, looks = looking + 1, looks + 1
            most = max(most, looking)
            try:
                return await tick(*args, **named)
            finally:
                looking -= 1

        broker.parts.upkeep.tick = count  # type: ignore[method-assign]
        for number in range(40):
            await broker.submit(new_job(queue=f"q{number}"))
        await eventually(lambda: looks > 200, "all of them were looked at")
    assert most == 3

"""Queues are deleted with all that is kept of them, by any server, while others use them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from jobwire_server.broker import announcements
from jobwire_server.broker.open_queues import OpenQueues
from jobwire_server.domain.decisions.schedules import Plan
from jobwire_server.domain.errors import QueueInUse, QueueNotFound, TooManyQueues
from jobwire_server.domain.model import (
    Failure,
    JobState,
    Piece,
    RequestId,
    UniqueKey,
    UniqueScope,
    Written,
)
from jobwire_server.domain.options import BrokerOptions, Limits
from jobwire_server.store import keys
from jobwire_server.store.reads import PageToken
from jobwire_server.store.schedules import Template

from tests.support.brokers import Broker, running_broker
from tests.support.dump import dump_keys
from tests.support.jobs import DAY_MS, new_job, worker_spec
from tests.support.waiting import eventually

OPTIONS = BrokerOptions(tick_ms=50)
_START = PageToken()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcements, "STIR_S", 0.05)


@pytest.fixture
async def two(valkey_url: str) -> AsyncIterator[tuple[Broker, Broker]]:
    """Two servers on one store."""
    async with AsyncExitStack() as stack:
        yield (
            await stack.enter_async_context(running_broker(valkey_url, OPTIONS, server_id="s1")),
            await stack.enter_async_context(running_broker(valkey_url, OPTIONS, server_id="s2")),
        )


def _kept(broker: Broker, queue: str = "default") -> dict[str, object]:
    """Every key of a queue, samples and all."""
    return {**dump_keys(broker.client, keys.queue_prefix(queue))}


def _registered(broker: Broker) -> list[str]:
    return [name.decode() for name in broker.client.zrange(keys.QUEUES, 0, -1)]


def _open(broker: Broker) -> OpenQueues:
    return broker.parts.open_queues


def _knows(broker: Broker, queue: str = "default") -> bool:
    parts = broker.parts
    return (
        parts.open_queues.find(queue) is not None
        or queue in parts.clocks
        or parts.settings.known(queue).max_ended_jobs > 0
        or keys.queue_prefix(queue) in parts.activity.quiet
    )


async def _delete(broker: Broker, queue: str = "default") -> None:
    await broker.router.deletions.delete(queue)


async def _fill(broker: Broker, ended: int = 3) -> None:
    """Leaves one of everything that a queue can keep without being in use."""
    operators = broker.router.operators
    await operators.configure_queue(
        "default", {"event_log_entries": 10, "max_ended_jobs": 5_000}, create=True
    )
    await broker.register()
    await broker.submit(new_job(unique=UniqueKey("k", UniqueScope.PERIOD, DAY_MS)))
    await broker.submit(new_job(request=RequestId("r", "d" * 32)))
    await broker.submit(*(new_job(priority=1) for _ in range(ended)))
    for at, claimed in enumerate(await broker.claim(most=ended + 2)):
        ulid, token = claimed.job_id[-26:], claimed.fencing_token
        written = Written(1, 0, (Piece("stdout", True, b"x"),))
        await broker.report("default", ulid, "w1", token, b"", written, b"checkpoint")
        if at % 2:
            await broker.succeed("default", ulid, "w1", token, b"x" * 100)
        else:
            failure = Failure("Broken", "", non_retryable=True)
            await broker.fail("default", ulid, "w1", token, failure)
    (gone,) = await broker.submit(new_job(operation="other"))
    await broker.router.cancel_job("default", gone, "")
    await operators.set_paused("default", paused=True)
    await broker.settle()


async def test_nothing_is_left_of_a_deleted_queue_and_no_server_knows_it(
    two: tuple[Broker, Broker],
) -> None:
    one, other = two
    await _fill(one)
    await eventually(lambda: _knows(other), "the other knows it")
    kinds = {key[:2] for key in _kept(one)}
    assert kinds >= {"r:", "j:", "x:", "c:", "h:", "o:", "u:", "q:", "lo", "sa", "do", "co", "ro"}
    await _delete(other)
    assert not _knows(other)
    await eventually(lambda: not _knows(one), "nobody knows it")
    assert not _kept(one)
    assert _registered(one) == []
    with pytest.raises(QueueNotFound):
        await one.router.operators.get_queue("default")
    await _delete(one)
    await _delete(one, "never-there")
    assert _registered(one) == []


async def test_the_next_job_makes_it_anew_at_any_server(two: tuple[Broker, Broker]) -> None:
    one, other = two
    await _fill(one)
    await eventually(lambda: _knows(other), "the other knows it")
    await _delete(one)
    await other.register()
    # Whether or not it has heard by then.
    await other.submit(new_job(request=RequestId("r", "e" * 32)))
    await other.claim_one()
    await eventually(lambda: _registered(one) == ["default"], "it is registered")
    queue = await one.router.operators.get_queue("default")
    assert (queue.paused, queue.revision, queue.totals["submitted"]) == (False, 1, 1)
    other.check()


@pytest.mark.parametrize("state", ["scheduled", "pending", "running", "cancelling", "schedule"])
async def test_live_jobs_and_schedules_hold_it(valkey_url: str, state: str) -> None:
    async with running_broker(valkey_url) as broker:
        await _fill(broker)
        await broker.router.operators.set_paused("default", paused=False)
        if state == "schedule":
            route = new_job().route
            plan = Plan(every_ms=DAY_MS)
            template = Template(b"", b"", plan, route.id, route.descriptor, 0, "")
            await broker.router.schedules.create("default", "s", template, False)
        else:
            delay = DAY_MS if state == "scheduled" else 0
            (ulid,) = await broker.submit(new_job(delay_ms=delay))
        if state in ("running", "cancelling"):
            await broker.claim_one()
        if state == "cancelling":
            await broker.router.cancel_job("default", ulid, "")
        before = broker.dump()
        with pytest.raises(QueueInUse) as caught:
            await _delete(broker)
        told = caught.value.metadata
        expected = ("0", "1") if state == "schedule" else ("1", "0")
        assert (told["live_jobs"], told["schedules"]) == expected
        assert broker.dump() == before
        assert _registered(broker) == ["default"]


async def test_a_deletion_that_breaks_off_leaves_a_queue_that_goes_on_or_is_deleted_again(
    valkey_url: str,
) -> None:
    async with running_broker(valkey_url) as broker:
        await _fill(broker, ended=450)
        cursor, steps, store = "0", 0, broker.parts.queues
        await store.note_deletion("default", done=False)
        while cursor:
            # Each step may be the last one.
            assert _registered(broker) == ["default"]
            broker.check()
            cursor = await store.erase("default", cursor)
            steps += 1
        assert steps > 3
        assert not _kept(broker)
        (ulid,) = await broker.submit()
        assert await broker.state(ulid) is JobState.PENDING
        broker.check()
        await broker.router.cancel_job("default", ulid, "")
        await _delete(broker)
        assert (not _kept(broker), _registered(broker)) == (True, [])


async def test_a_job_that_came_by_a_server_that_had_not_heard_is_kept_by_others(
    two: tuple[Broker, Broker],
) -> None:
    one, other = two
    await one.submit(new_job(retention_ms=0))
    await other.parts.open_queues.open("default")
    await other.parts.announcements.stop()
    await other.parts.clocks.stop()
    ulid = (await one.parts.jobs.list_ids("default", JobState.PENDING, 1, _START))[0][0]
    await one.router.cancel_job("default", ulid, "")
    await _delete(one)
    assert _registered(one) == []
    lane = _open(other).find("default")
    assert lane is not None
    # This server knows no better, and dies before it could.
    await lane.submit([new_job(delay_ms=1)])
    # Private: the next look at the registry is due in a while, by the clock of the process.
    one.parts.announcements._next_discovery_s = 0
    await eventually(lambda: _registered(one) == ["default"], "another registers it")
    await eventually(lambda: "default" in one.parts.clocks, "another keeps it")


async def test_jobs_that_come_while_a_queue_is_deleted_over_and_over_are_all_there(
    two: tuple[Broker, Broker],
) -> None:
    one, other = two
    accepted: list[str] = []
    refused = deleted = 0

    async def submit() -> None:
        for _ in range(60):
            (ulid,) = await other.submit()
            accepted.append(ulid)
            assert await other.state(ulid) is JobState.PENDING
            # It ends, and the queue may go with it.
            if len(accepted) < 60:
                await other.parts.lanes.of("default").cancel.one((ulid, ""))
            await asyncio.sleep(0.003)

    async def delete() -> None:
        nonlocal refused, deleted
        while len(accepted) < 60:
            try:
                await _delete(one)
                deleted += 1
            except QueueInUse:
                refused += 1
            await asyncio.sleep(0)

    await asyncio.gather(submit(), delete())
    assert deleted > 3
    assert await one.state(accepted[-1]) is JobState.PENDING
    await eventually(lambda: _registered(one) == ["default"], "it is registered")
    await eventually(lambda: "default" in one.parts.clocks, "both keep it")
    one.check()


async def test_no_more_queues_are_created_than_there_may_be(valkey_url: str) -> None:
    options = replace(OPTIONS, limits=Limits(max_queues=2))
    async with running_broker(valkey_url, options) as broker:
        operators = broker.router.operators
        await broker.submit(new_job("a"))
        await operators.configure_queue("b", {}, create=True)
        for create in (
            broker.router.submissions.submit("c", [new_job("c")]),
            broker.router.submissions.submit_one(new_job("c")),
            operators.configure_queue("c", {"max_ended_jobs": 1}, create=True),
            operators.set_paused("c", True, create=True),
        ):
            with pytest.raises(TooManyQueues) as caught:
                await create
            assert "max_queues" in caught.value.message
        assert not _kept(broker, "c")
        assert _registered(broker) == ["a", "b"]
        await broker.submit(new_job("a"), new_job("a"))
        await _delete(broker, "b")
        await broker.submit(new_job("c"))
        await broker.register()
    # Those that there are go on under a lower limit.
    options = replace(OPTIONS, limits=Limits(max_queues=1))
    async with running_broker(valkey_url, options, "s2") as broker:
        await broker.submit(new_job("a"), new_job("a"))
        await broker.router.register_worker(worker_spec("w2"))

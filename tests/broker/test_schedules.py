"""Schedules under servers that race, changes in the middle of firing, and a store that restarts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from jobwire_server.broker.queue_clock import QueueClock
from jobwire_server.domain.background import Alarm
from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.decisions.schedules import MissedRuns, Overlap, Plan
from jobwire_server.domain.errors import ScheduleNotFound
from jobwire_server.domain.model import JobState
from jobwire_server.store.activity import Activity
from jobwire_server.store.runner import ScriptRunner
from jobwire_server.store.schedules import Template
from jobwire_server.workers.queues_in_use import QueuesInUse

from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import DAY_MS, new_job
from tests.support.stores import StoreProcess
from tests.support.waiting import eventually

MINUTE = 60_000
EACH = Plan(every_ms=MINUTE, overlap=Overlap.ALLOW, missed_runs=MissedRuns.RUN_ALL)


def _template(plan: Plan = EACH, words: bytes = b"") -> Template:
    route = route_of("work", {})
    return Template(words, b"", plan, route.id, route.descriptor, 0, "")


async def _create(broker: Broker, name: str = "s1", plan: Plan = EACH) -> Any:
    return await broker.router.schedules.create("default", name, _template(plan), False)


def _fired(broker: Broker) -> list[str]:
    """The ULIDs of all jobs."""
    return sorted(key[2:] for key in broker.dump() if key.startswith("r:"))


@asynccontextmanager
async def _servers(url: str, count: int, settled: Counter[str]) -> AsyncIterator[list[Broker]]:
    """Several servers without loops of their own, on one store; counts the moments they settle."""

    def settle(outcome: str, moments: int) -> None:
        settled[outcome] += moments

    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                running_broker(url, server_id=f"s{number}", moments_settled=settle)
            )
            for number in range(count)
        ]


async def _due(broker: Broker) -> list[str]:
    return (await broker.parts.upkeep.tick("default", 200, DAY_MS, 5_000, 13)).schedules


async def test_servers_that_fire_one_moment_at_once_submit_one_job(store_url: str) -> None:
    settled: Counter[str] = Counter()
    async with _servers(store_url, 4, settled) as brokers:
        for at in range(20):
            await _create(brokers[0], f"s{at}")
        for rounds in range(1, 6):
            for broker in brokers:
                broker.shift(MINUTE)
            due = await _due(brokers[0])
            assert len(due) == 20
            await asyncio.gather(
                *(broker.parts.due_schedules.fire("default", due) for broker in brokers)
            )
            assert len(_fired(brokers[0])) == 20 * rounds
        assert settled == {"submitted": 100}
        brokers[0].check()


async def test_a_firing_that_is_repeated_after_a_lost_answer_is_one_job(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _create(broker)
    broker.shift(MINUTE)
    run = ScriptRunner.run

    async def run_twice(self: ScriptRunner, name: str, key: str, args: Any) -> Any:
        if name == "fire":
            await run(self, name, key, args)
        return await run(self, name, key, args)

    monkeypatch.setattr(ScriptRunner, "run", run_twice)
    await broker.parts.due_schedules.fire("default", ["s1"])
    assert len(_fired(broker)) == 1
    assert (await broker.router.schedules.get("default", "s1")).total_runs == 1
    broker.check()


async def test_a_decision_about_a_moment_that_is_settled_changes_nothing(broker: Broker) -> None:
    await _create(broker)
    broker.shift(MINUTE)
    store = broker.parts.schedule_store
    now, _, standings = await store.standings("default", ["s1"])
    (batch,), _ = await broker.parts.due_schedules.decide(
        "default", [one for one in standings if one], now
    )
    settings = await broker.parts.settings.get("default")
    for expected in ("SUBMITTED", "CHANGED"):
        before = broker.dump()
        _, _, (outcome,) = await broker.parts.schedule_store.fire(
            "default", batch, 0, DAY_MS, settings
        )
        assert outcome.name == expected
    assert broker.dump() == before
    # Nor after the next moment, which a repetition must not bring back.
    await broker.after(MINUTE)
    before = broker.dump()
    _, _, (outcome,) = await store.fire("default", batch, 0, DAY_MS, settings)
    assert outcome.name == "CHANGED"
    assert broker.dump() == before


@pytest.mark.parametrize(
    "change", ["update", "update, same moment", "pause", "delete", "make again"]
)
async def test_what_was_decided_before_a_change_is_not_done_after_it(
    broker: Broker, change: str
) -> None:
    schedules = broker.router.schedules
    await _create(broker)
    broker.shift(MINUTE)
    store = broker.parts.schedule_store
    now, _, standings = await store.standings("default", ["s1"])
    batches, _ = await broker.parts.due_schedules.decide(
        "default", [one for one in standings if one], now
    )
    if change.startswith("update"):
        if change == "update, same moment":
            # As after the store's clock was set back.
            broker.shift(-MINUTE)
        other = _template(EACH, b"other")
        await schedules.update("default", "s1", other, 0)
    elif change == "pause":
        await schedules.set_paused("default", "s1", True)
    else:
        await schedules.delete("default", "s1")
    if change == "make again":
        await _create(broker)
    settings = await broker.parts.settings.get("default")
    _, _, outcomes = await broker.parts.schedule_store.fire(
        "default", batches[0], 0, DAY_MS, settings
    )
    assert [outcome.name for outcome in outcomes] == ["CHANGED"]
    assert _fired(broker) == []
    broker.check()


async def test_a_change_made_before_a_firing_does_not_bring_its_moment_back(
    broker: Broker,
) -> None:
    made = await _create(broker)
    broker.shift(MINUTE)
    store = broker.parts.schedule_store
    _, read = await store.read("default", "s1")
    assert read is not None
    await broker.settle()
    before = broker.dump()
    fields: dict[str, Any] = {"up": 1}
    assert not await broker.parts.schedule_store.write(
        "default", "s1", read.standing, made.due_ms, fields
    )
    assert broker.dump() == before


async def test_changes_and_firings_at_once_leave_a_sound_schedule(broker: Broker) -> None:
    schedules = broker.router.schedules
    await _create(broker)

    async def change() -> None:
        for at in range(30):
            await schedules.update("default", "s1", _template(EACH, b"%d" % at), 0)
            await schedules.set_paused("default", "s1", at % 2 == 0)

    async def fire() -> None:
        for _ in range(30):
            broker.shift(MINUTE)
            await broker.parts.due_schedules.fire("default", ["s1"])

    await asyncio.gather(change(), fire(), fire())
    await schedules.set_paused("default", "s1", True)
    found = await schedules.get("default", "s1")
    assert found.total_runs == len(_fired(broker))
    assert found.due_ms == 0
    assert found.revision >= 60
    broker.check()


@pytest.mark.both_engines
async def test_schedules_outlive_a_kill_of_the_store(own_store: StoreProcess) -> None:
    async with running_broker(own_store.url) as broker:
        made = await _create(broker)
        # What was written within the last second may be lost with the store: ADR on durability.
        own_store.wait_written()
        own_store.restart()
        broker.client.close()
        assert (await broker.router.schedules.get("default", "s1")) == made
        await broker.after(MINUTE)
        assert len(_fired(broker)) == 1
        broker.check()


async def test_the_clock_fires_a_schedule_when_it_is_due(valkey_url: str) -> None:
    # The ticks are a day apart: only the schedule itself wakes the clock.
    async with running_broker(valkey_url) as broker:
        plan = Plan(every_ms=1_000, overlap=Overlap.ALLOW)
        await _create(broker, plan=plan)
        await eventually(lambda: len(_fired(broker)) >= 3, "three moments have come", timeout_s=10)
        found = await broker.router.schedules.get("default", "s1")
        assert found.missed_runs == 0
        late = [run.submitted_ms - run.due_ms for run in found.runs]
        assert min(late) >= 0


async def test_another_server_fires_what_the_one_that_made_it_left(valkey_url: str) -> None:
    async with running_broker(valkey_url) as first:
        await _create(first, plan=Plan(every_ms=1_000, overlap=Overlap.ALLOW))
    async with running_broker(valkey_url, replace(QUIET, tick_ms=100), "s2") as second:
        await eventually(lambda: len(_fired(second)) >= 2, "it is fired", timeout_s=10)


async def test_a_full_store_holds_schedules_back_and_the_clock_goes_on(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    await _create(broker, plan=replace(EACH, every_ms=DAY_MS))
    await broker.submit(new_job(delay_ms=1_000))
    broker.shift(DAY_MS)
    parts = broker.parts
    clock = QueueClock(
        "default",
        parts.upkeep,
        parts.options,
        parts.held,
        parts.due_schedules,
        parts.clock,
        parts.settings,
        Activity(),
        Alarm(),
        QueuesInUse(),
        asyncio.Semaphore(),
    )
    broker.client.config_set("maxmemory", "1mb")
    try:
        for _ in range(3):
            # Private: look by look, and with the wait that each asks for, which its loop keeps.
            assert 0 < await clock._look() <= 1
    finally:
        broker.client.config_set("maxmemory", "0")
    assert capsys.readouterr().out.count("schedules held back") == 1
    # The job that was due meanwhile became ready.
    (ulid,) = _fired(broker)
    assert await broker.state(ulid) is JobState.PENDING
    await broker.settle()
    assert len(_fired(broker)) == 2
    broker.check()


async def test_moments_that_follow_one_that_is_held_back_wait_for_it(broker: Broker) -> None:
    made = await _create(broker)
    await broker.router.operators.configure_queue("default", {"max_pending_jobs": 2})
    broker.shift(5 * MINUTE)
    assert (await broker.parts.due_schedules.fire("default", ["s1"])).held_back
    found = await broker.router.schedules.get("default", "s1")
    assert found.total_runs == len(_fired(broker)) == 2
    assert found.due_ms == made.due_ms + 2 * MINUTE
    await broker.router.operators.configure_queue("default", {"max_pending_jobs": 0})
    await broker.settle()
    found = await broker.router.schedules.get("default", "s1")
    assert [run.due_ms for run in found.runs] == [
        made.due_ms + at * MINUTE for at in (4, 3, 2, 1, 0)
    ]
    broker.check()


async def test_one_schedule_that_can_not_be_decided_does_not_stop_the_others(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    await _create(broker, "bad", Plan(cron="* * * * *", overlap=Overlap.ALLOW))
    await _create(broker, "good")
    key = "jw:{default}:schedule:bad"
    plan = broker.client.hget(key, "plan")
    broker.client.hset(key, "plan", plan.replace(b'"UTC"', b'"No/Where"'))
    broker.shift(2 * MINUTE)
    fired = await broker.parts.due_schedules.fire("default", ["bad", "good"])
    # The clock waits before it tries again.
    assert fired.held_back
    assert len(_fired(broker)) == 2
    assert "schedule not decided" in capsys.readouterr().out
    assert (await broker.parts.upkeep.tick("default", 9, 1, 1, 1)).schedules == ["bad"]


async def test_a_cancelled_previous_job_that_runs_is_told_to_its_worker(broker: Broker) -> None:
    await _create(broker, plan=replace(EACH, overlap=Overlap.CANCEL_PREVIOUS))
    await broker.register(lease_ms=3_600_000)
    await broker.after(MINUTE)
    running = await broker.claim_one()
    with broker.client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
        pubsub.ssubscribe("jw:{default}:signals")
        pubsub.get_sharded_message(timeout=5)
        await broker.after(MINUTE)
        message = pubsub.get_sharded_message(timeout=5)
    assert message["data"].decode() == running.job_id[-26:]
    assert await broker.state(running.job_id[-26:]) is JobState.CANCELLING
    broker.check()


async def test_a_schedule_that_is_gone_is_not_found(broker: Broker) -> None:
    await _create(broker)
    await broker.router.schedules.delete("default", "s1")
    with pytest.raises(ScheduleNotFound):
        await broker.router.schedules.get("default", "s1")


async def test_a_page_of_large_schedules_ends_early(
    valkey_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobwire_server.store.schedules.LIST_BYTES", 1_000)
    for name in ("a", "b", "c"):
        large = replace(_template(), job=bytes(600))
        await valkey_broker.router.schedules.create("default", name, large, True)
    first, token = await valkey_broker.router.schedules.page("default", 10, "")
    rest, end = await valkey_broker.router.schedules.page("default", 10, token)
    assert [one.schedule_id for one in first] == ["a", "b"]
    assert ([one.schedule_id for one in rest], end) == (["c"], "")


async def test_much_that_was_missed_is_made_up_for_in_portions(valkey_broker: Broker) -> None:
    await _create(valkey_broker, plan=replace(EACH, catch_up_ms=30 * DAY_MS))
    valkey_broker.shift(DAY_MS)
    looks = []
    while await _due(valkey_broker):
        before = len(_fired(valkey_broker))
        await valkey_broker.parts.due_schedules.fire("default", ["s1"])
        looks.append(len(_fired(valkey_broker)) - before)
    assert sum(looks) == 1440
    assert max(looks) <= 51
    valkey_broker.check()

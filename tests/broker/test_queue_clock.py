"""The clock of a queue: what it does by itself, and when it looks again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from jobwire_server.broker.queue_clock import AT_ONCE, QueueClock
from jobwire_server.domain.background import Alarm
from jobwire_server.domain.model import Assignment, Completion
from jobwire_server.store.activity import Activity
from jobwire_server.workers.queues_in_use import QueuesInUse

from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import new_job, ulid_of
from tests.support.scripts import Scripts
from tests.support.waiting import eventually


@asynccontextmanager
async def _clock(broker: Broker) -> AsyncIterator[QueueClock]:
    """Runs a clock of `default` whose ticks are a day apart."""
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
    clock.start()
    try:
        yield clock
    finally:
        await clock.stop()


async def test_forgetting_goes_on_for_as_long_as_there_are_jobs_to_forget(valkey_url: str) -> None:
    options = replace(QUIET, retain_succeeded_ms=0)
    async with running_broker(valkey_url, options) as broker:
        await broker.register()
        jobs = [new_job() for _ in range(3 * AT_ONCE + 1)]
        await broker.submit(*jobs)
        claimed: list[Assignment] = []
        while len(claimed) < len(jobs):
            claimed += await broker.claim("w1", 500)
        ends = [Completion("default", ulid_of(a.job_id), a.fencing_token, b"") for a in claimed]
        await broker.parts.attempts.complete_many("w1", ends)
        async with _clock(broker):
            await eventually(
                lambda: not [key for key in broker.dump() if key.startswith("r:")],
                "every job is forgotten",
                timeout_s=3,
            )
        broker.check()


async def test_an_overdue_attempt_does_not_hide_what_is_due_next(scripts: Scripts) -> None:
    await scripts.submit(new_job())
    await scripts.claim("w1", 1, lease_ms=1_000)
    await scripts.submit(new_job())
    await scripts.claim("w1", 1, lease_ms=1_200)
    scripts.shift(1_000)
    tick = await scripts.tick()
    assert [condition for condition, _ in tick.overdue] == ["lease"]
    assert 0 < tick.next_due_ms - tick.now_ms <= 200


async def test_samples_go_on_after_the_clock_was_set_back(scripts: Scripts) -> None:
    await scripts.submit()
    scripts.shift(3_600_000)
    await scripts.tick()
    scripts.shift(-3_600_000)
    await scripts.tick()
    newest, *_ = (await scripts.queues.read("default", detail=True)).samples
    assert newest[0] == scripts.after(0)

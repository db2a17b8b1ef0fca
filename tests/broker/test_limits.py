"""The limits and the retention of a queue, as its settings say, under load and over time."""

from __future__ import annotations

import asyncio

from jobwire_server.domain.errors import QueueFull
from jobwire_server.domain.model import Accepted, Failure, JobState, QueueChanges

from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import new_job
from tests.support.waiting import eventually

S = JobState


async def _configured(broker: Broker, changes: QueueChanges) -> None:
    await broker.submit()
    await broker.register()
    await broker.router.operators.configure_queue("default", changes)


async def _run_all(broker: Broker) -> int:
    """Completes whatever is ready; returns how many jobs."""
    taken = await broker.claim(most=100)
    await asyncio.gather(
        *(
            broker.succeed("default", one.job_id[-26:], "w1", one.fencing_token, b"x" * 100)
            for one in taken
        )
    )
    return len(taken)


async def _kept_at_most(broker: Broker, most: int) -> None:
    await eventually(
        lambda: broker.client.zcard("jw:{default}:done:5") <= most,
        f"{most} ended jobs",
        timeout_s=20,
    )


async def test_a_limit_holds_on_the_server_that_set_it_at_once(broker: Broker) -> None:
    await _configured(broker, {"max_pending_jobs": 3})
    answers = await broker.router.submissions.submit("default", [new_job() for _ in range(4)])
    assert [type(answer) for answer in answers] == [Accepted, Accepted, QueueFull, QueueFull]
    await broker.router.operators.configure_queue("default", {"max_pending_jobs": 0})
    assert len(await broker.submit(*(new_job() for _ in range(9)))) == 9
    broker.check()


async def test_a_queue_with_limits_keeps_within_them_under_steady_load(valkey_url: str) -> None:
    # Keepers look all the time here, which is what is tested.
    async with (
        running_broker(valkey_url, QUIET, "s1", tick_ms=50) as broker,
        running_broker(valkey_url, QUIET, "s2", tick_ms=50) as other,
    ):
        await _configured(broker, {"max_pending_jobs": 50, "max_ended_jobs": 30})
        await other.parts.settings.changed("default")
        refused = done = 0
        for _ in range(30):
            batches = [
                each.router.submissions.submit("default", [new_job() for _ in range(40)])
                for each in (broker, other)
            ]
            for answers in await asyncio.gather(*batches):
                refused += sum(isinstance(answer, QueueFull) for answer in answers)
            queue = await broker.router.operators.get_queue("default")
            assert queue.counts.get(S.PENDING, 0) <= 50
            done += await _run_all(broker)
        assert refused > 0
        while await _run_all(broker):
            pass
        await _kept_at_most(broker, 30)
        await broker.router.stop()
        await other.router.stop()
        dump = broker.check()
        assert len(dump.jobs) == 30
        assert done >= 50


async def test_each_queue_keeps_its_jobs_as_long_as_it_says(broker: Broker) -> None:
    await _configured(broker, {"retain_succeeded_ms": 1_000, "retain_ended_ms": 2_000})
    one = await broker.claim_one()
    await broker.succeed("default", one.job_id[-26:], "w1", one.fencing_token, b"")
    await broker.submit(new_job(), new_job(delay_ms=60_000))
    two = await broker.claim_one()
    final = Failure("x", non_retryable=True)
    await broker.fail("default", two.job_id[-26:], "w1", two.fencing_token, final)
    (three,) = broker.check().in_state(S.SCHEDULED)
    await broker.router.cancel_job("default", three, "")
    for ulid, kept in ((one.job_id[-26:], 1_000), (two.job_id[-26:], 2_000), (three, 2_000)):
        job = await broker.job(ulid)
        assert job.purge_at_ms - job.finished_at_ms == kept


async def test_a_queue_tells_its_bytes(broker: Broker) -> None:
    jobs = [new_job(payload="x" * size) for size in (10, 200)]
    await broker.submit(*jobs)
    await broker.register()
    one = await broker.claim_one()
    await broker.succeed("default", one.job_id[-26:], "w1", one.fencing_token, b"y" * 70)
    queue = await broker.router.operators.get_queue("default")
    assert queue.live_bytes == len(jobs[1].record)
    assert queue.ended_bytes == len(jobs[0].record) + 70


async def test_the_clock_drops_output_and_jobs_when_their_time_has_come(valkey_url: str) -> None:
    async with running_broker(valkey_url, QUIET, tick_ms=50) as broker:
        await _configured(broker, {"retain_output_ms": 0, "max_ended_jobs": 1})
        await broker.submit()
        assert await _run_all(broker) == 2
        await _kept_at_most(broker, 1)
        await broker.router.stop()
        broker.check()

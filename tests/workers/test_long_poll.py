"""Long polls: woken at once, by anybody's submission, and never holding a job that nobody has."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from jobwire_server.domain.model import JobState, WorkerStatus

from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import new_job, worker_spec
from tests.support.waiting import eventually

S = JobState
LONG_MS = 60_000
SOON_S = 1.5
"""Below the interval at which dispatchers look without being woken."""


async def _waits(broker: Broker, count: int = 1) -> None:
    """Returns once so many long polls wait for the store to say that there are jobs."""

    def subscribed() -> bool:
        channels = broker.client.pubsub_shardchannels("*:ready")
        return len(channels) > 0

    await eventually(subscribed, "a dispatcher is subscribed")
    await eventually(lambda: len(broker.parts.waiting) >= count, "the polls wait")


async def test_a_submission_wakes_a_long_poll(broker: Broker) -> None:
    await broker.register()
    poll = asyncio.create_task(broker.claim("w1", 5, wait_ms=LONG_MS))
    await _waits(broker)
    began = monotonic()
    (ulid,) = await broker.submit()
    (claimed,) = await poll
    assert claimed.job_id[-26:] == ulid
    assert monotonic() - began < SOON_S
    broker.check()


async def test_a_submission_through_another_server_wakes_a_long_poll(store_url: str) -> None:
    async with (
        running_broker(store_url, server_id="s1") as one,
        running_broker(store_url, server_id="s2") as two,
    ):
        await one.register()
        for _ in range(3):  # first a route that the server has never seen, then one that it knows
            poll = asyncio.create_task(one.claim(wait_ms=LONG_MS))
            await _waits(one)
            began = monotonic()
            (ulid,) = await two.submit()
            (claimed,) = await poll
            assert claimed.job_id[-26:] == ulid
            assert monotonic() - began < SOON_S


async def test_a_due_job_a_released_job_and_a_resumed_queue_wake_a_long_poll(
    broker: Broker,
) -> None:
    await broker.register("w1")
    await broker.register("w2")
    (delayed,) = await broker.submit(new_job(delay_ms=5_000))

    async def wake(poll: asyncio.Task[object]) -> None:
        began = monotonic()
        await poll
        assert monotonic() - began < SOON_S

    poll = asyncio.create_task(broker.claim(wait_ms=LONG_MS))
    await _waits(broker)
    await broker.after(5_001)
    await wake(poll)
    poll = asyncio.create_task(broker.claim("w2", wait_ms=LONG_MS))
    await _waits(broker)
    await broker.release("default", delayed, "w1", 1, True, "")
    await wake(poll)
    await broker.router.operators.set_paused("default", True)
    await broker.submit()
    poll = asyncio.create_task(broker.claim(wait_ms=LONG_MS))
    await _waits(broker)
    await broker.router.operators.set_paused("default", False)
    await wake(poll)
    broker.check()


async def test_a_long_poll_without_jobs_ends_empty_after_its_wait(broker: Broker) -> None:
    await broker.register()
    began = monotonic()
    assert await broker.claim(wait_ms=150) == []
    assert 0.14 <= monotonic() - began < 1.5
    assert await broker.claim(wait_ms=0) == []


async def test_a_cancelled_long_poll_takes_no_job_with_it(broker: Broker) -> None:
    await broker.register("w1")
    await broker.register("w2")
    for _ in range(40):
        poll = asyncio.create_task(broker.claim("w1", wait_ms=LONG_MS))
        await _waits(broker)
        (ulid,) = await broker.submit()
        poll.cancel()
        (outcome,) = await asyncio.gather(poll, return_exceptions=True)
        if isinstance(outcome, asyncio.CancelledError):
            # Whatever came for it in that moment goes back untouched, and to somebody else.
            (claimed,) = await broker.claim("w2", wait_ms=LONG_MS)
        else:
            assert isinstance(outcome, list)
            (claimed,) = outcome
        assert claimed.job_id[-26:] == ulid
        assert claimed.attempt == 1
        worker = "w2" if isinstance(outcome, asyncio.CancelledError) else "w1"
        await broker.succeed("default", ulid, worker, claimed.fencing_token, b"")
        broker.check()


async def test_of_many_long_polls_each_job_goes_to_one(broker: Broker) -> None:
    for number in range(20):
        await broker.register(f"w{number}")
    polls = [
        asyncio.create_task(broker.claim(f"w{number}", wait_ms=LONG_MS)) for number in range(20)
    ]
    await _waits(broker, 20)
    ulids: list[str] = []
    for _ in range(20):
        ulids += await broker.submit()
    taken = [
        one.job_id[-26:] for assignments in await asyncio.gather(*polls) for one in assignments
    ]
    assert sorted(taken) == ulids
    broker.check()


async def test_draining_ends_long_polls_with_nothing(broker: Broker) -> None:
    await broker.register()
    poll = asyncio.create_task(broker.claim(wait_ms=LONG_MS))
    await _waits(broker)
    await broker.router.drain()
    async with asyncio.timeout(SOON_S):
        assert await poll == []


@pytest.mark.parametrize("status", [WorkerStatus.PAUSED, WorkerStatus.DRAINING])
async def test_a_worker_that_takes_no_jobs_now_is_held_for_a_moment_at_each_poll(
    broker: Broker, status: WorkerStatus
) -> None:
    await broker.register()
    await broker.submit()
    await broker.router.set_worker_status("w1", status)
    began = monotonic()
    assert await broker.claim("w1", wait_ms=LONG_MS) == []
    assert 0.5 < monotonic() - began < SOON_S, "neither at once nor for as long as for a job"
    poll = asyncio.create_task(broker.claim("w1", wait_ms=LONG_MS))
    await eventually(lambda: broker.parts.waiting, "the poll is held")
    began = monotonic()
    await broker.router.set_worker_status("w1", WorkerStatus.READY)
    assert await poll == []
    assert monotonic() - began < 0.5
    assert len(await broker.claim("w1", wait_ms=LONG_MS)) == 1


async def test_a_worker_that_waits_in_a_long_poll_is_alive(store_url: str) -> None:
    async with running_broker(store_url, QUIET, worker_timeout_ms=15_000) as broker:
        await broker.register()
        poll = asyncio.create_task(broker.claim(wait_ms=LONG_MS))
        await _waits(broker)
        broker.shift(14_000)
        seen_before = broker.now_ms()

        def seen() -> bool:
            return float(broker.client.zscore("jw:{workers}:seen", "w1") or 0) >= seen_before

        await eventually(seen, "the sign of life of a waiting worker")
        broker.shift(14_000)
        await broker.sweep()
        worker = await broker.router.operators.find_worker("w1")
        assert worker is not None
        assert worker.status is WorkerStatus.READY
        poll.cancel()
        await asyncio.gather(poll, return_exceptions=True)


async def test_a_poll_over_several_queues_is_woken_by_any_of_them(broker: Broker) -> None:
    await broker.router.register_worker(worker_spec(queues=("a", "b", "c")))
    for queue in ("c", "a", "b"):
        poll = asyncio.create_task(broker.claim("w1", wait_ms=LONG_MS))
        await _waits(broker)
        await broker.router.submissions.submit(queue, [new_job(queue)])
        (claimed,) = await poll
        assert claimed.job_id.startswith(f"{queue}-")
        broker.check(queue)

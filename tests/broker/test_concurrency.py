"""Many callers at once: every job is delivered once, whoever asks and through whichever server."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from jobwire_server.domain.errors import ServerBusy
from jobwire_server.domain.model import Assignment, JobState
from jobwire_server.domain.options import Limits

from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import new_job
from tests.support.waiting import eventually

JOBS = 5_000


async def _drain(broker: Broker, worker_id: str, most: int, done: Counter[str]) -> None:
    """Claims and completes until there is nothing left."""
    while claimed := await broker.claim(worker_id, most):
        done.update(one.job_id for one in claimed)
        await asyncio.gather(
            *(
                broker.succeed("default", one.job_id[-26:], worker_id, one.fencing_token, b"")
                for one in claimed
            )
        )


async def _fill(broker: Broker, count: int) -> set[str]:
    jobs = [new_job(priority=at % 3 * 5, operation="work") for at in range(count)]
    batches = [jobs[at : at + 500] for at in range(0, count, 500)]
    await asyncio.gather(*(broker.router.submissions.submit("default", batch) for batch in batches))
    return {job.job_id for job in jobs}


async def test_50_claimers_over_5000_jobs_get_each_of_them_once(broker: Broker) -> None:
    expected = await _fill(broker, JOBS)
    done: Counter[str] = Counter()
    for number in range(50):
        await broker.register(f"w{number}")
    await asyncio.gather(*(_drain(broker, f"w{number}", 7, done) for number in range(50)))
    assert set(done) == expected
    assert set(done.values()) == {1}
    dump = broker.check()
    assert len(dump.in_state(JobState.SUCCEEDED)) == JOBS
    assert dump.keys["totals"] == {
        "submitted": str(JOBS),
        "started": str(JOBS),
        "succeeded": str(JOBS),
    }


async def _serve(broker: Broker, worker_id: str, done: Counter[str]) -> None:
    """Claims with long polls and completes, until it is cancelled."""
    while True:
        for one in await broker.claim(worker_id, 5, wait_ms=60_000):
            done[one.job_id] += 1
            await broker.succeed("default", one.job_id[-26:], worker_id, one.fencing_token, b"")


async def test_two_servers_on_one_store_deliver_each_job_once_while_jobs_come_in(
    store_url: str,
) -> None:
    async with (
        running_broker(store_url, server_id="s1") as one,
        running_broker(store_url, server_id="s2") as two,
    ):
        done: Counter[str] = Counter()
        serving = []
        for number in range(20):
            broker = (one, two)[number % 2]
            await broker.register(f"w{number}")
            serving.append(asyncio.create_task(_serve(broker, f"w{number}", done)))
        expected: set[str] = set()
        for _ in range(10):
            for ids in await asyncio.gather(_fill(one, 100), _fill(two, 100)):
                expected |= ids
        await eventually(
            lambda: one.client.zcard("jw:{default}:done:5") == len(expected),
            "every job has succeeded",
            timeout_s=30,
        )
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        assert set(done) == expected
        assert set(done.values()) == {1}
        one.check()


async def test_claimers_that_give_up_at_random_lose_no_job(valkey_broker: Broker) -> None:
    broker = valkey_broker
    done: Counter[str] = Counter()

    gave_up = 0

    async def impatient(worker_id: str) -> None:
        nonlocal gave_up
        await broker.register(worker_id)
        while True:
            # From less than a claim takes on any machine to more than it does on a busy one.
            patience_s = 0.000_1 * 2 ** random.uniform(0, 14)
            poll = asyncio.create_task(broker.claim(worker_id, 3, wait_ms=60_000))
            await asyncio.wait({poll}, timeout=patience_s)
            if not poll.done():
                poll.cancel()
            (claimed,) = await asyncio.gather(poll, return_exceptions=True)
            if isinstance(claimed, asyncio.CancelledError):
                gave_up += 1
                continue
            if isinstance(claimed, BaseException):
                raise claimed
            await _complete(broker, worker_id, claimed, done)

    serving = [asyncio.create_task(impatient(f"w{number}")) for number in range(15)]
    expected: set[str] = set()
    for _ in range(30):
        expected |= await _fill(broker, 20)
    try:
        await eventually(lambda: len(done) == len(expected), "every job is done", timeout_s=60)
    finally:
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
    assert set(done.values()) == {1}
    assert gave_up
    broker.check()


async def _complete(
    broker: Broker, worker_id: str, claimed: list[Assignment], done: Counter[str]
) -> None:
    for one in claimed:
        await broker.succeed("default", one.job_id[-26:], worker_id, one.fencing_token, b"")
        done[one.job_id] += 1


async def test_beyond_its_limit_a_server_refuses_and_recovers(valkey_url: str) -> None:
    limits = Limits(max_queued_requests=50)
    async with running_broker(valkey_url, QUIET, limits=limits) as broker:
        results = await asyncio.gather(
            *(broker.submit() for _ in range(200)), return_exceptions=True
        )
        accepted = [result for result in results if not isinstance(result, BaseException)]
        refused = [result for result in results if isinstance(result, ServerBusy)]
        assert len(accepted) + len(refused) == 200
        assert len(refused) >= 100
        assert len(broker.check().jobs) == len(accepted)
        await broker.submit()


@pytest.mark.parametrize("ending", ["succeed", "release"])
async def test_the_same_completion_from_many_callers_counts_once(
    broker: Broker, ending: str
) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    token = (await broker.claim_one()).fencing_token

    async def complete() -> JobState:
        if ending == "succeed":
            return (await broker.succeed("default", ulid, "w1", token, b"")).state
        return (await broker.release("default", ulid, "w1", token, True, "")).state

    states = await asyncio.gather(*(complete() for _ in range(30)))
    assert len(set(states)) == 1
    job = await broker.job(ulid)
    assert (job.interruptions, len(job.attempts)) == (int(ending == "release"), 1)
    broker.check()

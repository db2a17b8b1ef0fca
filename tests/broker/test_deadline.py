"""The deadline of a job as a whole, whatever the job is doing when it passes."""

from __future__ import annotations

import pytest

from jobwire_server.domain.errors import LeaseLost, WrongState
from jobwire_server.domain.model import DEADLINE_MISSED, Failure, JobState, Outcome, RetryPolicy

from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import DAY_MS, new_job
from tests.support.waiting import eventually

S = JobState
DEADLINE_MS = 10_000
FAILURE = Failure("Broken", "it broke")


async def _submit(broker: Broker, **fields: int | RetryPolicy) -> str:
    job = new_job(deadline_ms=broker.now_ms() + DEADLINE_MS, **fields)  # type: ignore[arg-type]
    (ulid,) = await broker.submit(job)
    return ulid


async def test_a_job_that_waits_past_its_deadline_is_a_dead_letter(broker: Broker) -> None:
    for fields in ({}, {"delay_ms": DAY_MS}, {"priority": 7}):
        ulid = await _submit(broker, **fields)
        await broker.after(DEADLINE_MS + 1)
        job = await broker.job(ulid)
        assert (job.state, job.failure, job.attempts) == (S.FAILED, DEADLINE_MISSED, ())
        broker.check()
    assert (await broker.router.operators.get_queue("default")).totals["failed"] == 3


async def test_a_running_job_loses_its_lease_at_the_deadline(broker: Broker) -> None:
    await broker.register()
    ulid = await _submit(broker, retry=RetryPolicy(max_attempts=100))
    token = (await broker.claim_one()).fencing_token
    await broker.after(DEADLINE_MS + 1)
    job = await broker.job(ulid)
    assert (job.state, job.failure) == (S.FAILED, DEADLINE_MISSED)
    (attempt,) = job.attempts
    assert (attempt.outcome, attempt.failure) == (Outcome.TIMED_OUT, DEADLINE_MISSED)
    _, (renewal,), _, _ = await broker.router.heartbeat("w1", [("default", ulid, token)])
    assert renewal.lost
    before = broker.dump()
    for write in (
        broker.succeed("default", ulid, "w1", token, b"late"),
        broker.fail("default", ulid, "w1", token, FAILURE),
        broker.release("default", ulid, "w1", token, True, ""),
        broker.report("default", ulid, "w1", token, b"late"),
    ):
        with pytest.raises(LeaseLost):
            await write
    assert broker.dump() == before
    broker.check()


async def test_a_job_that_is_being_cancelled_is_cancelled_at_its_deadline(store_url: str) -> None:
    async with running_broker(store_url, QUIET, cancel_grace_ms=DAY_MS) as broker:
        await broker.register()
        ulid = await _submit(broker)
        await broker.claim_one()
        await broker.router.cancel_job("default", ulid, "why")
        await broker.after(DEADLINE_MS + 1)
        job = await broker.job(ulid)
        assert job.state is S.CANCELLED
        assert [attempt.outcome for attempt in job.attempts] == [Outcome.TIMED_OUT]
        broker.check()


async def test_a_claim_does_not_hand_out_what_is_past_its_deadline(broker: Broker) -> None:
    await broker.register()
    late = [await _submit(broker), await _submit(broker, priority=3)]
    by_id = await _submit(broker)
    broker.shift(DEADLINE_MS + 1)  # and no look of the clock
    with pytest.raises(WrongState):
        await broker.claim_job("w1", "default", by_id)
    assert await broker.claim("w1", 9) == []
    for ulid in (*late, by_id):
        job = await broker.job(ulid)
        assert (job.state, job.failure) == (S.FAILED, DEADLINE_MISSED)
    broker.check()


async def test_a_retry_that_could_not_start_before_the_deadline_is_not_waited_for(
    broker: Broker,
) -> None:
    await broker.register()
    for wait_ms, target in ((DEADLINE_MS // 2, S.SCHEDULED), (DEADLINE_MS + 1_000, S.FAILED)):
        policy = RetryPolicy(max_attempts=9, initial_backoff_ms=wait_ms)
        ulid = await _submit(broker, retry=policy)
        token = (await broker.claim_one()).fencing_token
        for _ in range(2):
            done = await broker.fail("default", ulid, "w1", token, FAILURE)
            assert done.state is target
        assert (await broker.job(ulid)).failure == FAILURE
        broker.check()


async def test_an_execution_timeout_with_no_time_left_for_a_retry_ends_the_job(
    broker: Broker,
) -> None:
    await broker.register()
    policy = RetryPolicy(max_attempts=9, initial_backoff_ms=DEADLINE_MS)
    ulid = await _submit(broker, retry=policy, execution_timeout_ms=1_000)
    await broker.claim_one()
    await broker.after(1_001)
    job = await broker.job(ulid)
    assert job.state is S.FAILED
    assert job.failure is not None
    assert job.failure.type == "EXECUTION_TIMEOUT"
    broker.check()


async def test_a_job_that_crashed_keeps_its_deadline(broker: Broker) -> None:
    await broker.register(lease_ms=1_000)
    ulid = await _submit(broker)
    await broker.claim_one()
    await broker.after(1_001)
    assert await broker.state(ulid) is S.PENDING
    await broker.after(DEADLINE_MS)
    job = await broker.job(ulid)
    assert (job.state, job.failure) == (S.FAILED, DEADLINE_MISSED)
    assert [attempt.outcome for attempt in job.attempts] == [Outcome.CRASHED]
    broker.check()


async def test_a_job_that_ended_in_time_has_no_deadline_any_more(broker: Broker) -> None:
    await broker.register()
    done, cancelled, failed = [await _submit(broker) for _ in range(3)]
    tokens = {one.job_id[-26:]: one.fencing_token for one in await broker.claim("w1", 3)}
    await broker.succeed("default", done, "w1", tokens[done], b"r")
    await broker.router.cancel_job("default", cancelled, "why")
    await broker.confirm_cancel("default", cancelled, "w1", tokens[cancelled])
    final = Failure("Broken", "", non_retryable=True)
    await broker.fail("default", failed, "w1", tokens[failed], final)
    broker.check()
    before = broker.dump()
    await broker.after(DEADLINE_MS + 1)
    assert broker.dump() == before


async def test_a_job_that_expires_before_its_deadline_is_expired(broker: Broker) -> None:
    now = broker.now_ms()
    (ulid,) = await broker.submit(new_job(expires_at_ms=now + 1_000, deadline_ms=now + 2_000))
    await broker.after(3_000)
    assert await broker.state(ulid) is S.EXPIRED
    broker.check()


async def test_whichever_server_is_up_enforces_a_deadline_when_it_comes(store_url: str) -> None:
    async with running_broker(store_url, QUIET, "s1") as first:
        now = first.now_ms()
        (ulid,) = await first.submit(new_job(deadline_ms=now + 700))
    async with running_broker(store_url, QUIET, "s2") as second:
        await eventually(
            lambda: second.check().state(ulid) is S.FAILED, "the deadline passed", timeout_s=10
        )


async def test_a_server_keeps_the_deadline_of_a_job_that_it_accepts(store_url: str) -> None:
    async with running_broker(store_url) as broker:
        await broker.register()
        # The queue's clock sleeps for a day by now.
        await broker.submit()
        (ulid,) = await broker.submit(new_job(priority=1, deadline_ms=broker.now_ms() + 500))
        claimed = await broker.claim_one()
        assert claimed.job_id.endswith(ulid)
        await eventually(
            lambda: broker.check().state(ulid) is S.FAILED, "the deadline passed", timeout_s=10
        )


async def test_a_redrive_takes_the_deadline_away(broker: Broker) -> None:
    await broker.register()
    ulid = await _submit(broker)
    await broker.after(DEADLINE_MS + 1)
    await broker.router.retry_job("default", ulid, "", 0)
    await broker.after(DEADLINE_MS)
    token = (await broker.claim_one()).fencing_token
    final = Failure("Broken", "", non_retryable=True)
    await broker.fail("default", ulid, "w1", token, final)
    assert (await broker.job(ulid)).failure == final
    broker.check()

"""Cancellation, grace, expiry and delays through the router."""

from __future__ import annotations

import pytest

from jobwire_server.domain.errors import JobNotFound, LeaseLost, WrongState
from jobwire_server.domain.model import Failure, JobState, Outcome

from tests.support.brokers import Broker
from tests.support.jobs import new_job, next_ulid

S = JobState
GRACE_MS = 30_000


async def _cancelling(broker: Broker) -> tuple[str, int]:
    await broker.register(lease_ms=3_600_000)
    (ulid,) = await broker.submit()
    token = (await broker.claim_one()).fencing_token
    job = await broker.router.cancel_job("default", ulid, "not needed")
    assert (job.state, job.cancel_reason) == (S.CANCELLING, "not needed")
    return ulid, token


async def test_the_worker_is_told_by_every_heartbeat_and_report_until_it_acts(
    broker: Broker,
) -> None:
    ulid, token = await _cancelling(broker)
    for _ in range(2):
        _, (renewal,), _, _ = await broker.router.heartbeat("w1", [("default", ulid, token)])
        assert renewal.cancel is not None
        assert renewal.cancel.job_id == f"default-{ulid}"
        assert (renewal.cancel.reason, renewal.cancel.fencing_token) == ("not needed", token)
        assert abs(renewal.cancel.deadline_ms - broker.now_ms() - GRACE_MS) < 2_000
    report = await broker.report("default", ulid, "w1", token, b"x")
    assert report.cancel == renewal.cancel
    done = await broker.confirm_cancel("default", ulid, "w1", token)
    assert done.state is S.CANCELLED
    job = await broker.job(ulid)
    assert [attempt.outcome for attempt in job.attempts] == [Outcome.CANCELLED]
    broker.check()


async def test_a_result_that_comes_first_wins(broker: Broker) -> None:
    ulid, token = await _cancelling(broker)
    done = await broker.succeed("default", ulid, "w1", token, b"r")
    assert done.state is S.SUCCEEDED
    with pytest.raises(WrongState) as refused:
        await broker.router.cancel_job("default", ulid, "")
    assert refused.value.metadata["state"] == "SUCCEEDED"
    broker.check()


async def test_a_worker_that_does_not_act_within_the_grace_loses_the_job(broker: Broker) -> None:
    ulid, token = await _cancelling(broker)
    await broker.after(GRACE_MS - 1_000)
    assert await broker.state(ulid) is S.CANCELLING
    await broker.after(1_001)
    assert await broker.state(ulid) is S.CANCELLED
    with pytest.raises(LeaseLost):
        await broker.succeed("default", ulid, "w1", token, b"late")
    broker.check()


async def test_a_worker_that_ignores_a_cancellation_and_goes_on_reporting_is_fenced(
    broker: Broker,
) -> None:
    ulid, token = await _cancelling(broker)
    router = broker.router
    for _ in range(5):
        # It is told each time, and its reports do not stretch the grace.
        renewal = await broker.report("default", ulid, "w1", token, b"still at it")
        assert renewal.cancel is not None
        await broker.after(GRACE_MS // 5 + 1)
    assert await broker.state(ulid) is S.CANCELLED
    _, (renewal,), _, _ = await router.heartbeat("w1", [("default", ulid, token)])
    assert renewal.lost
    before = broker.dump()
    for write in (
        broker.report("default", ulid, "w1", token, b"", None, b"checkpoint"),
        broker.succeed("default", ulid, "w1", token, b"late"),
        broker.fail("default", ulid, "w1", token, Failure("Late", "")),
        broker.release("default", ulid, "w1", token, True, ""),
        broker.confirm_cancel("default", ulid, "w1", token),
    ):
        with pytest.raises(LeaseLost):
            await write
    assert broker.dump() == before
    broker.check()


@pytest.mark.parametrize("final", [True, False])
async def test_a_failure_during_a_cancellation_cancels_and_is_kept(
    broker: Broker, final: bool
) -> None:
    ulid, token = await _cancelling(broker)
    failure = Failure("Stopped", "half way", non_retryable=final)
    done = await broker.fail("default", ulid, "w1", token, failure)
    assert done.state is S.CANCELLED
    assert (await broker.job(ulid)).failure == failure
    broker.check()


async def test_nobody_can_confirm_a_cancellation_that_nobody_asked_for(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    token = (await broker.claim_one()).fencing_token
    before = broker.dump()
    with pytest.raises(WrongState):
        await broker.confirm_cancel("default", ulid, "w1", token)
    assert broker.dump() == before


async def test_a_cancelled_job_is_never_delivered(broker: Broker) -> None:
    await broker.register()
    pending, scheduled = (
        await broker.submit(),
        await broker.submit(new_job(delay_ms=1_000)),
    )
    for (ulid,) in (pending, scheduled):
        job = await broker.router.cancel_job("default", ulid, "")
        assert job.state is S.CANCELLED
    await broker.after(2_000)
    assert await broker.claim("w1", 10) == []
    broker.check()


async def test_a_job_that_is_not_there_cannot_be_cancelled(broker: Broker) -> None:
    with pytest.raises(JobNotFound):
        await broker.router.cancel_job("default", next_ulid(), "")
    with pytest.raises(JobNotFound):
        await broker.router.cancel_job("never-seen", next_ulid(), "")


async def test_a_cancellation_between_read_and_write_of_an_ending_is_seen(
    broker: Broker,
) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    token = (await broker.claim_one()).fencing_token
    # Private: only between this step and the next can the cancellation come, and nothing else tells
    # when that is.
    read = broker.parts.attempts._read
    reads = 0

    async def read_then_cancel(queue: str, wanted: str) -> object:
        nonlocal reads
        reads += 1
        job = await read(queue, wanted)
        if reads == 1:
            await broker.router.cancel_job("default", ulid, "raced")
        return job

    # Private, as above.
    broker.parts.attempts._read = read_then_cancel  # type: ignore[assignment, method-assign]
    done = await broker.fail("default", ulid, "w1", token, Failure("Broken", ""))
    assert reads == 2
    assert done.state is S.CANCELLED
    broker.check()


async def test_a_job_is_delivered_when_it_is_due_and_not_before(broker: Broker) -> None:
    await broker.register()
    now = broker.now_ms()
    delayed, timed = new_job(delay_ms=5_000), new_job(run_at_ms=now + 9_000)
    await broker.submit(delayed, timed)
    assert await broker.claim("w1", 5) == []
    await broker.after(5_001)
    assert [one.job_id for one in await broker.claim("w1", 5)] == [delayed.job_id]
    await broker.after(4_000)
    assert [one.job_id for one in await broker.claim("w1", 5)] == [timed.job_id]
    broker.check()


async def test_an_expired_job_is_not_delivered_even_before_the_clock_acts(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit(new_job(expires_at_ms=broker.now_ms() + 1_000))
    broker.shift(1_001)
    assert await broker.claim() == []
    assert await broker.state(ulid) is S.EXPIRED
    broker.check()

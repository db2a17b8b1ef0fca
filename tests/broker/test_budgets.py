"""Failures, crashes and interruptions through the router and the store, counted apart."""

from __future__ import annotations

import pytest

from jobwire_server.domain.decisions import endings
from jobwire_server.domain.errors import LeaseLost
from jobwire_server.domain.model import Failure, JobState, Outcome, RetryPolicy

from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import new_job, worker_spec

S = JobState
FAILURE = Failure("Broken", "it broke")
LEASE_MS = 30_000


async def _fail(broker: Broker, failure: Failure = FAILURE) -> tuple[JobState, int]:
    claimed = await broker.claim_one()
    completed = await broker.fail(
        "default", claimed.job_id[-26:], "w1", claimed.fencing_token, failure
    )
    return completed.state, completed.next_attempt_at_ms


async def test_a_job_is_tried_as_often_as_its_policy_says_and_then_is_a_dead_letter(
    broker: Broker,
) -> None:
    await broker.register()
    policy = RetryPolicy(max_attempts=4, initial_backoff_ms=1_000, multiplier=3)
    (ulid,) = await broker.submit(new_job(retry=policy))
    for backoff in (1_000, 3_000, 9_000):
        state, due = await _fail(broker)
        assert state is S.SCHEDULED
        assert abs(due - broker.now_ms() - backoff) < 1_000
        await broker.after(backoff - 1_000)
        assert await broker.claim() == []
        await broker.after(1_001)
        broker.check()
    assert (await _fail(broker))[0] is S.FAILED
    job = await broker.job(ulid)
    assert (job.failures, job.attempt, job.failure) == (4, 4, FAILURE)
    assert [attempt.outcome for attempt in job.attempts] == [Outcome.FAILED] * 4
    broker.check()


async def test_one_attempt_means_no_retry(broker: Broker) -> None:
    await broker.register()
    await broker.submit(new_job(retry=RetryPolicy(max_attempts=1)))
    assert (await _fail(broker))[0] is S.FAILED


async def test_a_failure_that_is_final_ends_the_job_whatever_is_left(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    failure = Failure("Broken", "never", "stack", b"details", non_retryable=True)
    assert (await _fail(broker, failure))[0] is S.FAILED
    assert (await broker.job(ulid)).failure == failure


async def test_a_failure_that_names_its_wait_is_tried_again_after_it(broker: Broker) -> None:
    await broker.register()
    await broker.submit()
    _, due = await _fail(broker, Failure("Busy", "", retry_after_ms=100_000))
    assert abs(due - broker.now_ms() - 100_000) < 1_000


async def test_lost_leases_end_a_job_after_its_crash_budget(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    for crash in (1, 2, 3):
        await broker.claim_one()
        await broker.after(LEASE_MS + 1)
        job = await broker.job(ulid)
        assert job.crashes == crash
        assert job.state is (S.PENDING if crash < 3 else S.FAILED)
        broker.check()
    assert job.failure is not None
    assert job.failure.type == "CRASHED_TOO_OFTEN"
    assert job.failures == 0


async def test_releases_do_not_fail_a_job(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit(new_job(retry=RetryPolicy(max_attempts=1)))
    for _ in range(20):
        claimed = await broker.claim_one()
        done = await broker.release("default", ulid, "w1", claimed.fencing_token, True, "deploy")
        assert done.state is S.PENDING
    job = await broker.job(ulid)
    assert (job.interruptions, job.failures, job.crashes) == (20, 0, 0)
    broker.check()


async def test_interruptions_without_end_end_the_job(store_url: str) -> None:
    async with running_broker(store_url, QUIET, max_interruptions=3) as broker:
        await broker.register()
        (ulid,) = await broker.submit()
        for target in (S.PENDING, S.PENDING, S.FAILED):
            claimed = await broker.claim_one()
            done = await broker.release("default", ulid, "w1", claimed.fencing_token, True, "")
            assert done.state is target
        failure = (await broker.job(ulid)).failure
        assert failure is not None
        assert failure.type == "INTERRUPTED_TOO_OFTEN"
        broker.check()


async def test_an_attempt_that_never_began_leaves_every_budget_alone(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    for token in (1, 2):
        claimed = await broker.claim_one()
        assert (claimed.attempt, claimed.fencing_token) == (1, token)
        await broker.release("default", ulid, "w1", token, False, "")
    job = await broker.job(ulid)
    assert (job.attempt, job.interruptions) == (0, 0)
    assert [attempt.outcome for attempt in job.attempts] == [Outcome.UNDELIVERED] * 2
    broker.check()


async def test_an_attempt_past_its_execution_timeout_counts_as_a_failure(broker: Broker) -> None:
    await broker.register()
    job = new_job(execution_timeout_ms=2_000, retry=RetryPolicy(max_attempts=2))
    (ulid,) = await broker.submit(job)
    claimed = await broker.claim_one()
    await broker.after(2_001)
    found = await broker.job(ulid)
    assert (found.state, found.failures) == (S.SCHEDULED, 1)
    assert found.attempts[0].outcome is Outcome.TIMED_OUT
    with pytest.raises(LeaseLost):
        await broker.succeed("default", ulid, "w1", claimed.fencing_token, b"late")
    await broker.after(1_001)
    await broker.claim_one()
    await broker.after(2_001)
    found = await broker.job(ulid)
    assert found.state is S.FAILED
    assert found.failure is not None
    assert found.failure.type == "EXECUTION_TIMEOUT"
    broker.check()


async def test_renewals_do_not_stretch_an_execution_timeout(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit(new_job(execution_timeout_ms=2_000))
    token = (await broker.claim_one()).fencing_token
    await broker.after(1_500)
    _, (renewal,), _, _ = await broker.router.heartbeat("w1", [("default", ulid, token)])
    assert not renewal.lost
    await broker.after(501)
    assert await broker.state(ulid) is S.SCHEDULED


async def test_reports_and_heartbeats_keep_a_lease_for_as_long_as_they_come(
    broker: Broker,
) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    token = (await broker.claim_one()).fencing_token
    for turn in range(6):
        await broker.after(LEASE_MS - 1_000)
        if turn % 2:
            await broker.report("default", ulid, "w1", token, b"x")
        else:
            await broker.router.heartbeat("w1", [("default", ulid, token)])
    assert await broker.state(ulid) is S.RUNNING
    await broker.after(LEASE_MS + 1)
    assert await broker.state(ulid) is S.PENDING
    broker.check()


async def test_a_job_whose_lease_ran_out_is_delivered_again_under_a_higher_token(
    broker: Broker,
) -> None:
    await broker.register("w1")
    await broker.register("w2")
    (ulid,) = await broker.submit()
    first = await broker.claim_one("w1")
    await broker.after(LEASE_MS + 1)
    second = await broker.claim_one("w2")
    assert second.fencing_token > first.fencing_token
    assert second.attempt == 2
    for call in (
        broker.succeed("default", ulid, "w1", first.fencing_token, b"late"),
        broker.fail("default", ulid, "w1", first.fencing_token, FAILURE),
        broker.release("default", ulid, "w1", first.fencing_token, True, ""),
        broker.report("default", ulid, "w1", first.fencing_token, b"late"),
        broker.confirm_cancel("default", ulid, "w1", first.fencing_token),
    ):
        before = broker.dump()
        with pytest.raises(LeaseLost):
            await call
        assert broker.dump() == before
    done = await broker.succeed("default", ulid, "w2", second.fencing_token, b"mine")
    assert done.state is S.SUCCEEDED
    assert (await broker.job(ulid)).result == b"mine"
    broker.check()


async def test_a_lease_that_a_living_worker_never_names_is_no_crash_three_times(
    broker: Broker,
) -> None:
    """As where the answers of its claims were lost on their way."""
    await broker.register()
    (ulid,) = await broker.submit()
    for round_ in range(1, 7):
        await broker.claim_one()
        for _ in range(7):
            broker.shift(4_000)
            await broker.router.heartbeat("w1", [])
        await broker.after(4_000)
        job = await broker.job(ulid)
        crashes = max(0, round_ - endings.FREE_DELIVERIES)
        assert (job.crashes, job.state) == (crashes, S.FAILED if crashes == 3 else S.PENDING)
    outcomes = [attempt.outcome for attempt in job.attempts]
    assert outcomes == [Outcome.UNDELIVERED] * 3 + [Outcome.CRASHED] * 3
    broker.check()


async def test_a_lease_of_a_worker_that_was_not_heard_of_since_is_a_crash(broker: Broker) -> None:
    await broker.register()
    (ulid,) = await broker.submit()
    assignment = await broker.claim_one()
    broker.shift(20_000)
    await broker.router.heartbeat("w1", [("default", ulid, assignment.fencing_token)])
    await broker.after(30_001)
    job = await broker.job(ulid)
    assert (job.crashes, job.state) == (1, S.PENDING)


async def test_jobs_of_a_worker_whose_server_fell_silent_with_it_count_no_crash(
    store_url: str,
) -> None:
    timeout_ms = 15_000
    async with (
        running_broker(store_url, QUIET, worker_timeout_ms=timeout_ms) as hung,
        running_broker(store_url, QUIET, "s2", worker_timeout_ms=timeout_ms) as broker,
    ):
        await hung.parts.reaper.stop()
        await hung.register()
        (ulid,) = await broker.submit()
        await hung.claim_one()
        broker.shift(timeout_ms + 1_000)
        await broker.sweep()
        job = await broker.job(ulid)
        assert (job.crashes, job.state) == (0, S.PENDING)
        assert [attempt.outcome for attempt in job.attempts] == [Outcome.UNDELIVERED]


async def test_a_clock_that_is_set_back_keeps_no_job_of_a_silent_worker(store_url: str) -> None:
    timeout_ms = 15_000
    async with running_broker(store_url, QUIET, worker_timeout_ms=timeout_ms) as broker:
        broker.shift(40_000)
        await broker.register()
        (ulid,) = await broker.submit()
        await broker.claim_one()
        broker.shift(-40_000)
        await broker.sweep()
        assert await broker.state(ulid) is S.RUNNING
        broker.shift(timeout_ms + 100)
        await broker.sweep()
        assert await broker.state(ulid) is S.PENDING


async def test_a_worker_started_anew_under_its_old_id_gets_its_old_jobs_back_at_once(
    broker: Broker,
) -> None:
    await broker.router.register_worker(worker_spec("w1"), "process-1")
    (ulid,) = await broker.submit()
    await broker.claim_one()
    broker.shift(10)
    await broker.router.register_worker(worker_spec("w1"), "process-2")
    job = await broker.job(ulid)
    assert (job.crashes, job.state) == (1, S.PENDING)
    assignment = await broker.claim_one()
    assert assignment.fencing_token == 2
    broker.shift(10)
    # The same call again, its answer lost.
    await broker.router.register_worker(worker_spec("w1"), "process-2")
    await broker.sweep()
    assert await broker.state(ulid) is S.RUNNING


async def test_every_completion_may_be_repeated_after_a_lost_answer(broker: Broker) -> None:
    await broker.register()
    router = broker.router
    for complete in ("succeed", "fail", "release", "cancel"):
        (ulid,) = await broker.submit()
        token = (await broker.claim_one()).fencing_token
        if complete == "cancel":
            await router.cancel_job("default", ulid, "")
        answers = []
        for _ in range(2):
            if complete == "succeed":
                answers.append(await broker.succeed("default", ulid, "w1", token, b"r"))
            elif complete == "fail":
                answers.append(await broker.fail("default", ulid, "w1", token, FAILURE))
            elif complete == "release":
                answers.append(await broker.release("default", ulid, "w1", token, True, ""))
            else:
                answers.append(await broker.confirm_cancel("default", ulid, "w1", token))
        assert answers[0] == answers[1], complete
        job = await broker.job(ulid)
        assert (job.failures, job.interruptions) == (complete == "fail", complete == "release")
        broker.check()
        if complete == "release":
            await router.cancel_job("default", ulid, "")


async def test_a_hundred_releases_never_fail_a_job(broker: Broker) -> None:
    await broker.register()
    policy = RetryPolicy(max_attempts=1)
    (ulid,) = await broker.submit(new_job(retry=policy))
    for number in range(100):
        claimed = await broker.claim_one()
        started = number % 2 == 0
        done = await broker.release("default", ulid, "w1", claimed.fencing_token, started, "deploy")
        assert done.state is S.PENDING
    job = await broker.job(ulid)
    assert (job.interruptions, job.failures, job.crashes) == (50, 0, 0)
    last = await broker.claim_one()
    await broker.succeed("default", ulid, "w1", last.fencing_token, b"r")
    assert await broker.state(ulid) is S.SUCCEEDED
    broker.check()


@pytest.mark.parametrize("max_attempts", [1, 3, 1_000])
async def test_a_poison_job_ends_whatever_its_retry_policy_says(
    store_url: str, max_attempts: int
) -> None:
    async with running_broker(store_url, QUIET, max_crashes=4) as broker:
        (ulid,) = await broker.submit(new_job(retry=RetryPolicy(max_attempts=max_attempts)))
        killed = 0
        for _ in range(20):
            await broker.register()
            if not await broker.claim():
                break
            killed += 1
            # Its worker dies: found lost by its silence, or by the end of the lease.
            if killed % 2:
                broker.client.zadd("jw:{workers}:seen", {"w1": 0})
                await broker.sweep()
            else:
                await broker.after(LEASE_MS + 1)
        job = await broker.job(ulid)
        assert killed == 4
        assert (job.state, job.crashes, job.failures) == (S.FAILED, 4, 0)
        assert job.failure is not None
        assert job.failure.type == "CRASHED_TOO_OFTEN"
        broker.check()


async def test_the_three_budgets_do_not_add_up(broker: Broker) -> None:
    await broker.register()
    policy = RetryPolicy(max_attempts=3, initial_backoff_ms=0)
    (ulid,) = await broker.submit(new_job(retry=policy))
    for turn in range(6):
        claimed = await broker.claim_one()
        if turn % 3 == 0:
            await broker.fail("default", ulid, "w1", claimed.fencing_token, FAILURE)
            await broker.after(1)
        elif turn % 3 == 1:
            await broker.after(LEASE_MS + 1)
        else:
            await broker.release("default", ulid, "w1", claimed.fencing_token, True, "")
    job = await broker.job(ulid)
    # Two of each, one short of the end by failures and of that by crashes.
    assert (job.failures, job.crashes, job.interruptions) == (2, 2, 2)
    assert job.state is S.PENDING
    assert (await _fail(broker))[0] is S.FAILED
    broker.check()

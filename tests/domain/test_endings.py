"""What becomes of a job when an attempt ends: budgets, backoffs, reasons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from jobwire_server.domain.decisions.endings import (
    CRASHED_TOO_OFTEN,
    EXECUTION_TIMEOUT,
    INTERRUPTED_TOO_OFTEN,
    Budget,
    Ending,
    after_cancellation,
    after_crash,
    after_deadline,
    after_failure,
    after_lost_delivery,
    after_release,
    after_timeout,
    backoff_ms,
    resolve,
)
from jobwire_server.domain.model import (
    DEADLINE_MISSED,
    Failure,
    FailureOrigin,
    Job,
    JobState,
    Outcome,
    RetryPolicy,
)
from jobwire_server.domain.options import BrokerOptions, RetryDefaults

OPTIONS = BrokerOptions(max_crashes=3, max_interruptions=5)
RUNNING = Job(
    job_id="default-x",
    queue="default",
    record=b"",
    state=JobState.RUNNING,
    revision=2,
    attempt=1,
    worker_id="w1",
    fencing_token=1,
    execution_timeout_ms=500,
)
CANCELLING = replace(RUNNING, state=JobState.CANCELLING)
FAILURE = Failure("Broken", "it broke")


def middle() -> float:
    return 0.5


def fail(job: Job, failure: Failure = FAILURE) -> Ending:
    return after_failure(job, failure, DEFAULTS, middle)


# Failures --------------------------------------------------------------------


def test_the_first_failure_is_tried_again_after_the_first_backoff() -> None:
    assert fail(RUNNING) == Ending(
        Outcome.FAILED, JobState.SCHEDULED, Budget.FAILURES, 1_000, FAILURE
    )


@pytest.mark.parametrize(
    ("max_attempts", "failures", "target"),
    [
        (1, 0, JobState.FAILED),
        (2, 0, JobState.SCHEDULED),
        (2, 1, JobState.FAILED),
        (1000, 998, JobState.SCHEDULED),
        (1000, 999, JobState.FAILED),
    ],
)
def test_max_attempts_includes_the_first(
    max_attempts: int, failures: int, target: JobState
) -> None:
    job = replace(RUNNING, failures=failures, retry=RetryPolicy(max_attempts=max_attempts))
    assert fail(job).target is target


def test_crashes_and_interruptions_do_not_use_up_the_attempts() -> None:
    job = replace(RUNNING, crashes=2, interruptions=4, attempt=7)
    assert fail(job).target is JobState.SCHEDULED


def test_a_failure_that_is_final_ends_the_job_at_once() -> None:
    failure = replace(FAILURE, non_retryable=True, retry_after_ms=5)
    assert fail(RUNNING, failure) == Ending(
        Outcome.FAILED, JobState.FAILED, Budget.FAILURES, 0, failure
    )


@pytest.mark.parametrize("after", [0, 1, 86_400_000])
def test_a_failure_may_name_its_own_wait(after: int) -> None:
    assert fail(RUNNING, replace(FAILURE, retry_after_ms=after)).backoff_ms == after


def test_a_wait_of_its_own_buys_no_further_attempt() -> None:
    job = replace(RUNNING, failures=2)
    assert fail(job, replace(FAILURE, retry_after_ms=5)).target is JobState.FAILED


@pytest.mark.parametrize("failures", [0, 2])
def test_a_timeout_counts_as_a_failure(failures: int) -> None:
    ending = after_timeout(replace(RUNNING, failures=failures), DEFAULTS, middle)
    assert ending.outcome is Outcome.TIMED_OUT
    assert ending.budget is Budget.FAILURES
    assert ending.target is (JobState.FAILED if failures else JobState.SCHEDULED)
    assert ending.failure is not None
    assert ending.failure.type == EXECUTION_TIMEOUT
    assert "500 ms" in ending.failure.message


@pytest.mark.parametrize(
    ("kind", "read_at_ms", "origin"),
    [
        # Claimed at 10,000 with a timeout of 500, and a deadline at 20,000.
        (EXECUTION_TIMEOUT, 10_400, FailureOrigin.WORKER),
        (EXECUTION_TIMEOUT, 10_499, FailureOrigin.BROKER),
        (EXECUTION_TIMEOUT, 12_000, FailureOrigin.BROKER),
        ("DEADLINE_EXCEEDED", 12_000, FailureOrigin.WORKER),
        ("DEADLINE_EXCEEDED", 19_200, FailureOrigin.BROKER),
        ("ValueError", 30_000, FailureOrigin.WORKER),
        ("CRASHED_TOO_OFTEN", 30_000, FailureOrigin.WORKER),
    ],
)
def test_a_limit_that_has_passed_is_the_brokers_whoever_found_it_first(
    kind: str, read_at_ms: int, origin: FailureOrigin
) -> None:
    told = replace(FAILURE, type=kind, origin=FailureOrigin.WORKER)
    job = replace(
        RUNNING,
        started_at_ms=10_000,
        execution_timeout_ms=500,
        deadline_ms=20_000,
        read_at_ms=read_at_ms,
    )
    ending = fail(job, told)
    assert ending.outcome is Outcome.FAILED
    assert ending.failure == replace(told, origin=origin)
    unlimited = replace(job, execution_timeout_ms=0, deadline_ms=0)
    assert fail(unlimited, told).failure == told


# Deadlines -------------------------------------------------------------------


def test_at_the_deadline_the_job_fails_whatever_is_left_of_its_budgets() -> None:
    job = replace(RUNNING, retry=RetryPolicy(max_attempts=100), deadline_ms=1)
    assert after_deadline(job) == Ending(
        Outcome.TIMED_OUT, JobState.FAILED, Budget.FAILURES, failure=DEADLINE_MISSED
    )
    assert after_deadline(CANCELLING).target is JobState.CANCELLED


@pytest.mark.parametrize(
    ("left_ms", "target"),
    [(999, JobState.FAILED), (1_000, JobState.FAILED), (1_001, JobState.SCHEDULED)],
)
def test_a_retry_at_the_deadline_or_later_is_not_waited_for(left_ms: int, target: JobState) -> None:
    job = replace(RUNNING, read_at_ms=50_000, deadline_ms=50_000 + left_ms)
    for ending in (fail(job), after_timeout(job, DEFAULTS, middle)):
        assert ending.target is target
        assert (ending.backoff_ms > 0) == (target is JobState.SCHEDULED)
    assert fail(job).failure == FAILURE


# Crashes and interruptions ---------------------------------------------------


def test_the_last_crash_of_the_budget_ends_the_job() -> None:
    endings = [after_crash(replace(RUNNING, crashes=n), "lost", OPTIONS) for n in range(3)]
    assert [ending.target for ending in endings] == [
        JobState.PENDING,
        JobState.PENDING,
        JobState.FAILED,
    ]
    assert {ending.budget for ending in endings} == {Budget.CRASHES}
    assert [ending.failure and ending.failure.type for ending in endings] == [
        "CRASHED",
        "CRASHED",
        CRASHED_TOO_OFTEN,
    ]


def test_failures_do_not_use_up_the_crashes() -> None:
    assert after_crash(replace(RUNNING, failures=99), "lost", OPTIONS).target is JobState.PENDING


def test_a_release_counts_an_interruption_if_the_handler_had_begun() -> None:
    assert after_release(RUNNING, True, "", OPTIONS) == Ending(
        Outcome.RELEASED, JobState.PENDING, Budget.INTERRUPTIONS
    )
    assert after_release(RUNNING, False, "", OPTIONS) == Ending(
        Outcome.UNDELIVERED, JobState.PENDING, Budget.NONE
    )


def test_a_delivery_that_nobody_acknowledged_is_free_three_times_and_then_a_crash() -> None:
    endings = [
        after_lost_delivery(replace(RUNNING, lost_deliveries=lost), OPTIONS) for lost in range(4)
    ]
    free = (Outcome.UNDELIVERED, JobState.PENDING, Budget.DELIVERIES)
    assert [(e.outcome, e.target, e.budget) for e in endings] == [
        *[free] * 3,
        (Outcome.CRASHED, JobState.PENDING, Budget.CRASHES),
    ]


def test_a_reason_of_a_release_is_kept() -> None:
    ending = after_release(RUNNING, True, "deploy", OPTIONS)
    assert ending.failure == Failure("RELEASED", "deploy")


def test_interruptions_are_bounded_and_undelivered_attempts_are_not() -> None:
    job = replace(RUNNING, interruptions=4)
    last = after_release(job, True, "", OPTIONS)
    assert last.target is JobState.FAILED
    assert last.failure is not None
    assert last.failure.type == INTERRUPTED_TOO_OFTEN
    assert after_release(job, False, "", OPTIONS).target is JobState.PENDING


# Cancellation ----------------------------------------------------------------


@pytest.mark.parametrize(
    "decide",
    [
        fail,
        lambda job: fail(job, replace(FAILURE, non_retryable=True)),
        lambda job: after_timeout(job, DEFAULTS, middle),
        lambda job: after_crash(replace(job, crashes=2), "lost", OPTIONS),
        lambda job: after_release(job, True, "deploy", OPTIONS),
        lambda job: after_release(job, False, "", OPTIONS),
        lambda job: after_cancellation(),
    ],
)
def test_whatever_ends_a_cancelled_attempt_cancels_the_job(
    decide: Callable[[Job], Ending],
) -> None:
    assert decide(CANCELLING).target is JobState.CANCELLED


# Backoff ---------------------------------------------------------------------

EXACT = RetryDefaults(initial_backoff_ms=100, max_backoff_ms=5_000, multiplier=2, jitter=0)


def test_each_wait_is_longer_than_the_one_before_up_to_the_longest() -> None:
    waits = [backoff_ms(EXACT, failures, middle) for failures in range(1, 9)]
    assert waits == [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]


def test_a_thousand_failures_do_not_overflow() -> None:
    policy = replace(EXACT, multiplier=10, max_backoff_ms=30 * 86_400_000)
    assert backoff_ms(policy, 1_000, middle) == 30 * 86_400_000
    assert backoff_ms(replace(policy, initial_backoff_ms=0), 1_000, middle) == 0


@pytest.mark.parametrize(
    ("jitter", "draw", "wait"),
    [(0.2, 0.0, 80), (0.2, 0.5, 100), (0.2, 0.999999, 120), (1.0, 0.0, 0), (1.0, 0.999999, 200)],
)
def test_jitter_spreads_the_wait_around_its_middle(jitter: float, draw: float, wait: int) -> None:
    assert backoff_ms(replace(EXACT, jitter=jitter), 1, lambda: draw) == wait


DEFAULTS = RetryDefaults()


def test_a_job_without_a_policy_has_the_defaults() -> None:
    assert resolve(None, DEFAULTS) is DEFAULTS
    assert resolve(RetryPolicy(), DEFAULTS) == DEFAULTS


def test_a_policy_replaces_what_it_names() -> None:
    policy = RetryPolicy(
        max_attempts=7, initial_backoff_ms=0, max_backoff_ms=9, multiplier=1.5, jitter=0.0
    )
    assert resolve(policy, DEFAULTS) == RetryDefaults(7, 0, 9, 1.5, 0.0)


def test_the_longest_wait_is_never_below_the_first() -> None:
    long_start = resolve(RetryPolicy(initial_backoff_ms=3_600_000), DEFAULTS)
    assert (long_start.initial_backoff_ms, long_start.max_backoff_ms) == (3_600_000, 3_600_000)
    short_end = resolve(RetryPolicy(max_backoff_ms=10), DEFAULTS)
    assert (short_end.initial_backoff_ms, short_end.max_backoff_ms) == (10, 10)

"""Decides what becomes of a job when an attempt ends without a result.

Three budgets are counted separately. *Failures* are what handlers report, and timeouts;
`max_attempts` bounds them. *Crashes* are leases that ran out and workers that were lost.
*Interruptions* are jobs given back by workers that shut down. So a job that kills its workers ends,
whatever its retry policy, and a deployment fails no job.

A delivery that nobody acknowledged is free: most often it was lost on its way. But a job that kills
its worker before a word is said looks the same, so that only the first few are. The same goes for
what nobody can know of: jobs of a worker whose server fell silent with it, or whose process lives
and says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from jobwire_server.domain.model import (
    DEADLINE_MISSED,
    Failure,
    FailureOrigin,
    Former,
    Job,
    JobState,
    Outcome,
    RetryPolicy,
)
from jobwire_server.domain.options import BrokerOptions, RetryDefaults

CRASHED_TOO_OFTEN = "CRASHED_TOO_OFTEN"
INTERRUPTED_TOO_OFTEN = "INTERRUPTED_TOO_OFTEN"
EXECUTION_TIMEOUT = "EXECUTION_TIMEOUT"
EARLY_TIMEOUT_MS = 10
"""How early a worker's report of an execution timeout may be by the store's clock; both measure a
span, from the claim and from its arrival.
"""
EARLY_DEADLINE_MS = 1_000
"""The same for a deadline, which the worker looks up on its own clock."""
SIGNS_EVERY_MS = 1_000
"""How late a sign of life may be recorded."""
FREE_DELIVERIES = 3
"""Deliveries that nobody acknowledged, beyond which each further one counts as a crash."""


class Budget(StrEnum):
    """The counter that an ending adds one to; the value is its field in the store."""

    FAILURES = "f"
    CRASHES = "c"
    INTERRUPTIONS = "i"
    DELIVERIES = "l"
    NONE = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """What to write at the end of an attempt."""

    outcome: Outcome
    target: JobState
    """PENDING, SCHEDULED, FAILED or CANCELLED."""
    budget: Budget = Budget.NONE
    backoff_ms: int = 0
    """With SCHEDULED: the wait from now."""
    failure: Failure | None = None


def resolve(policy: RetryPolicy | None, defaults: RetryDefaults) -> RetryDefaults:
    """Fill what the policy of a job, or of a queue, leaves open.

    A limit that one side sets below the other's floor is raised to it, so that the longest
    backoff is never below the first.
    """
    if policy is None:
        return defaults
    initial = policy.initial_backoff_ms
    if initial is None:
        initial = defaults.initial_backoff_ms
        if policy.max_backoff_ms is not None:
            initial = min(initial, policy.max_backoff_ms)
    longest = defaults.max_backoff_ms if policy.max_backoff_ms is None else policy.max_backoff_ms
    return RetryDefaults(
        max_attempts=policy.max_attempts or defaults.max_attempts,
        initial_backoff_ms=initial,
        max_backoff_ms=max(longest, initial),
        multiplier=policy.multiplier or defaults.multiplier,
        jitter=defaults.jitter if policy.jitter is None else policy.jitter,
    )


def backoff_ms(retry: RetryDefaults, failures: int, random: Callable[[], float]) -> int:
    """Return the wait after the given number of failures, at least 0.

    Args:
        retry: The resolved policy.
        failures: 1 after the first failure.
        random: Returns a number in [0, 1).
    """
    # The exponent is bounded because a float overflows long after the cap has applied.
    growth = retry.multiplier ** min(failures - 1, 64)
    wait = min(retry.initial_backoff_ms * growth, retry.max_backoff_ms)
    spread = 1 + retry.jitter * (2 * random() - 1)
    return max(0, round(wait * spread))


def after_failure(
    job: Job, failure: Failure, defaults: RetryDefaults, random: Callable[[], float]
) -> Ending:
    """The handler reported a failure; `defaults` are those of the job's queue."""
    return _after_failure(job, _of_its_finder(job, failure), Outcome.FAILED, defaults, random)


def _of_its_finder(job: Job, failure: Failure) -> Failure:
    """Return a failure that says the same of a limit's end, whether the worker's clock or the
    broker's found it first.
    """
    end = 0
    if failure.type == EXECUTION_TIMEOUT and job.execution_timeout_ms:
        end = job.started_at_ms + job.execution_timeout_ms - EARLY_TIMEOUT_MS
    elif failure.type == DEADLINE_MISSED.type and job.deadline_ms:
        end = job.deadline_ms - EARLY_DEADLINE_MS
    if not end or job.read_at_ms < end:
        return failure
    return replace(failure, origin=FailureOrigin.BROKER)


def after_timeout(job: Job, defaults: RetryDefaults, random: Callable[[], float]) -> Ending:
    """The attempt ran past its execution timeout; `defaults` are those of the job's queue."""
    failure = Failure(
        type=EXECUTION_TIMEOUT,
        message=f"the attempt ran longer than its execution timeout of"
        f" {job.execution_timeout_ms} ms",
    )
    return _after_failure(job, failure, Outcome.TIMED_OUT, defaults, random)


def _after_failure(
    job: Job,
    failure: Failure,
    outcome: Outcome,
    defaults: RetryDefaults,
    random: Callable[[], float],
) -> Ending:
    if job.state is JobState.CANCELLING:
        return Ending(outcome, JobState.CANCELLED, Budget.FAILURES, failure=failure)
    retry = resolve(job.retry, defaults)
    failures = job.failures + 1
    if failure.non_retryable or failures >= retry.max_attempts:
        return Ending(outcome, JobState.FAILED, Budget.FAILURES, failure=failure)
    wait = failure.retry_after_ms
    if wait is None:
        wait = backoff_ms(retry, failures, random)
    if job.deadline_ms and job.read_at_ms + wait >= job.deadline_ms:
        # The deadline would end it before the next attempt: better to fail now, with the cause.
        return Ending(outcome, JobState.FAILED, Budget.FAILURES, failure=failure)
    return Ending(outcome, JobState.SCHEDULED, Budget.FAILURES, wait, failure)


def after_deadline(job: Job) -> Ending:
    """The deadline of the job as a whole passed while a worker held it."""
    target = JobState.CANCELLED if job.state is JobState.CANCELLING else JobState.FAILED
    return Ending(Outcome.TIMED_OUT, target, Budget.FAILURES, failure=DEADLINE_MISSED)


def after_crash(job: Job, cause: str, options: BrokerOptions) -> Ending:
    """The lease ran out or the worker was lost; `cause` says which, for people."""
    if job.state is JobState.CANCELLING:
        return Ending(Outcome.CRASHED, JobState.CANCELLED, Budget.CRASHES)
    crashes = job.crashes + 1
    if crashes >= options.max_crashes:
        failure = Failure(
            type=CRASHED_TOO_OFTEN,
            message=f"{cause}; crash {crashes} of at most {options.max_crashes}",
        )
        return Ending(Outcome.CRASHED, JobState.FAILED, Budget.CRASHES, failure=failure)
    return Ending(
        Outcome.CRASHED, JobState.PENDING, Budget.CRASHES, failure=Failure("CRASHED", cause)
    )


def after_release(
    job: Job, started: bool, reason: str, options: BrokerOptions, *, told: bool = False
) -> Ending:
    """The job goes back; `started` if its handler had begun, `told` if its worker said so."""
    origin = FailureOrigin.WORKER if told else FailureOrigin.BROKER
    note = Failure("RELEASED", reason, origin=origin) if reason else None
    outcome = Outcome.RELEASED if started else Outcome.UNDELIVERED
    budget = Budget.INTERRUPTIONS if started else Budget.NONE
    if job.state is JobState.CANCELLING:
        return Ending(outcome, JobState.CANCELLED, budget, failure=note)
    if started and job.interruptions + 1 >= options.max_interruptions:
        failure = Failure(
            type=INTERRUPTED_TOO_OFTEN,
            message=f"interruption {job.interruptions + 1} of at most {options.max_interruptions}",
        )
        return Ending(outcome, JobState.FAILED, budget, failure=failure)
    return Ending(outcome, JobState.PENDING, budget, failure=note)


def after_lost_delivery(
    job: Job, options: BrokerOptions, why: str = "never acknowledged"
) -> Ending:
    """The job was on its way to a worker that never acknowledged it, or nobody knows whether it
    was run; `why` says which, for people.
    """
    if job.lost_deliveries >= FREE_DELIVERIES:
        cause = f"{job.worker_id} never acknowledged it, nor did {job.lost_deliveries} before"
        return after_crash(job, cause, options)
    ending = after_release(job, False, why, options)
    return replace(ending, budget=Budget.DELIVERIES)


def after_take_over(job: Job, former: Former, options: BrokerOptions) -> Ending:
    """The worker attached and did not name the job; `former` says who held it."""
    if former is Former.ENDED:
        return after_crash(job, f"the process of {job.worker_id} that ran it is gone", options)
    if former is Former.UNHEARD:
        return after_lost_delivery(job, options, "its worker's server fell silent")
    if former is Former.HELD:
        why = f"another process took the id {job.worker_id}"
        return after_release(job, True, why, options)
    return after_release(job, False, "its worker does not name it", options)


def after_lapse(
    job: Job, cause: str, heard_at_ms: int, lease_ms: int, opts: BrokerOptions
) -> Ending:
    """The lease ran out, or the worker was lost.

    A worker that lives names its jobs, or its server does, each third of a lease. If its last sign
    of life came long after the last renewal, it never had the job, or has let go of it.

    Args:
        job: As it was read.
        cause: What happened, for people.
        heard_at_ms: The worker's last sign of life; 0 if unknown.
        lease_ms: How long each renewal of the lease lasts.
        opts: The budgets.
    """
    renewed_at_ms = job.lease_expires_at_ms - lease_ms
    if heard_at_ms > renewed_at_ms + lease_ms / 2 + SIGNS_EVERY_MS:
        return after_lost_delivery(job, opts, f"{job.worker_id} lives and does not name it")
    return after_crash(job, cause, opts)


def after_cancellation() -> Ending:
    """The worker confirmed the cancellation, or its grace is over."""
    return Ending(Outcome.CANCELLED, JobState.CANCELLED)

"""Many jobs: from the contract's filters to the router, and progress back."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from math import isfinite
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from jobwire.v1 import job_service_pb2
from jobwire_server.domain.decisions.filters import JobFilter
from jobwire_server.domain.decisions.queue_patterns import ANY, MAX_ANY, fits, is_pattern
from jobwire_server.domain.model import BulkProgress, FailureOrigin, JobState
from jobwire_server.servicers.checks import MAX_STATES, Checker

MAX_JOB_IDS = 1_000
MAX_TYPE_BYTES = 128
MAX_PATTERN = 67
"""Characters: those of the longest name, and of `*`."""
_PATTERN = re.compile(r"[a-z0-9._*-]+")
MAX_JOBS = (1 << 63) - 1
SLOWEST, FASTEST = 0.01, 100_000.0
"""Jobs a second of a redrive."""
_LAST_S = 253_402_300_799
"""The last second that a Timestamp may name."""
_STATES = [int(state) for state in JobState]
_ORIGINS = [int(origin) for origin in FailureOrigin]


def states_of(checker: Checker, field: str, states: Sequence[int]) -> list[JobState]:
    """Return the states of a filter."""
    if len(states) > MAX_STATES:
        checker.add(field, f"may name at most {MAX_STATES}, not {len(states)}")
        return []
    for at, state in enumerate(states):
        if state not in _STATES:
            checker.add(f"{field}[{at}]", "must be one of the states a job can be in")
    return [JobState(state) for state in states if state in _STATES]


def ulids_of(
    checker: Checker, field: str, queue: str, job_ids: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return the ULIDs of jobs that a filter names, by queue; all in queues that it means."""
    if len(job_ids) > MAX_JOB_IDS:
        checker.add(field, f"may name at most {MAX_JOB_IDS}, not {len(job_ids)}")
        return {}
    ulids: dict[str, list[str]] = {}
    for at, job_id in enumerate(job_ids):
        its_queue, ulid = checker.job_id(f"{field}[{at}]", job_id)
        if its_queue and not fits(queue, its_queue):
            which = "a queue that fits" if is_pattern(queue) else "the queue"
            checker.add(f"{field}[{at}]", f"must be a job of {which} {queue[:80]}")
        ulids.setdefault(its_queue, []).append(ulid)
    return {its_queue: tuple(found) for its_queue, found in ulids.items()}


def job_filter(
    checker: Checker,
    message: job_service_pb2.JobFilter,
    *,
    required: bool = True,
    patterns: bool = True,
) -> JobFilter:
    """Return the jobs that a request is about; violations are named under `filter`.

    Args:
        checker: Takes the violations.
        message: The filter.
        required: Whether the queue must be named.
        patterns: Whether it may be a pattern.
    """
    if not is_pattern(message.queue):
        queue = checker.queue("filter.queue", message.queue, required=required)
    elif patterns:
        queue = _pattern(checker, "filter.queue", message.queue)
    else:
        queue = message.queue[:MAX_PATTERN]
        text = f"must be the name of one queue here, not the pattern {queue!r}"
        checker.add("filter.queue", text)
    if message.operation:
        checker.operation("filter.operation", message.operation)
    checker.labels("filter.labels", message.labels)
    checker.text("filter.failure_type", message.failure_type, MAX_TYPE_BYTES)
    origin = FailureOrigin.UNKNOWN
    if message.failure_origin in _ORIGINS:
        origin = FailureOrigin(message.failure_origin)
    else:
        checker.add("filter.failure_origin", "must be one that a failure can have, or unset")
    moments = {}
    for name in ("submitted_after", "submitted_before", "finished_after", "finished_before"):
        moments[f"{name}_ms"] = (
            _moment_ms(checker, f"filter.{name}", getattr(message, name))
            if message.HasField(name)
            else 0
        )
    for what in ("submitted", "finished"):
        after, before = moments[f"{what}_after_ms"], moments[f"{what}_before_ms"]
        if before and after >= before:
            checker.add(f"filter.{what}_before", f"must lie after filter.{what}_after")
    ulids = ulids_of(checker, "filter.job_ids", queue, message.job_ids)
    of_several = is_pattern(queue)
    return JobFilter(
        queue=queue,
        states=tuple(states_of(checker, "filter.states", message.states)),
        operation=message.operation,
        labels=dict(message.labels),
        failure_type=message.failure_type,
        failure_origin=origin,
        ulids=() if of_several else ulids.get(queue, ()),
        named=ulids if of_several else {},
        **moments,
    )


def watched_jobs(checker: Checker, request: job_service_pb2.WatchJobsRequest) -> JobFilter:
    """Return the jobs that a watch is about."""
    if request.cursor and request.only_changes:
        checker.add("only_changes", "can't be combined with a cursor")
    return job_filter(checker, request.filter, required=False, patterns=False)


def reversed_order(checker: Checker, order: int) -> bool:
    """Return whether jobs are listed the other way round."""
    if order not in job_service_pb2.JobOrder.values():
        checker.add("order_by", "must be one of the orders that jobs are listed in")
    return order == job_service_pb2.JOB_ORDER_STATE_REVERSE


def most_jobs(checker: Checker, value: int) -> int:
    """Return the most jobs to act on, 0 for all."""
    return checker.number("max_jobs", value, 0, MAX_JOBS)


def pace(checker: Checker, value: float) -> float:
    """Return the most jobs a second, 0 for no cap."""
    if value and not (isfinite(value) and SLOWEST <= value <= FASTEST):
        checker.add("max_per_second", f"must be {SLOWEST} to {FASTEST:.0f}, or 0, not {value}")
    return value


async def answers(
    steps: AsyncIterator[BulkProgress], response: Callable[..., Any]
) -> AsyncIterator[Any]:
    """Yield progress as messages of a type whose `progress` it becomes."""
    async for step in steps:
        yield response(
            progress=job_service_pb2.BulkProgress(
                matched=step.matched,
                changed=step.changed,
                skipped=step.skipped,
                sample_job_ids=step.samples,
                done=step.done,
            )
        )


def _pattern(checker: Checker, field: str, pattern: str) -> str:
    """Check a pattern of queues."""
    if len(pattern) > MAX_PATTERN or not _PATTERN.fullmatch(pattern):
        checker.add(
            field,
            "must be a queue name or a pattern: characters out of a-z 0-9 . _ - with * for any"
            f" number of them, at most {MAX_PATTERN} together, not {pattern[:80]!r}",
        )
    elif pattern.count(ANY) > MAX_ANY:
        checker.add(field, f"may have * at most {MAX_ANY} times, not {pattern.count(ANY)}")
    return pattern[:MAX_PATTERN]


def _moment_ms(checker: Checker, field: str, moment: Timestamp) -> int:
    """Return a moment in Unix milliseconds, rounded up."""
    if not 0 < moment.seconds <= _LAST_S or not 0 <= moment.nanos < 1_000_000_000:
        checker.add(field, "must be a moment after 1970 and before the year 10000")
        return 0
    return moment.seconds * 1000 + -(-moment.nanos // 1_000_000)

"""From a SubmitJobRequest to a submission that the broker takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import lru_cache
from time import perf_counter
from typing import Literal, NamedTuple

from jobwire.v1 import job_pb2, job_service_pb2
from jobwire_server.broker.new_jobs import NewJobs
from jobwire_server.broker.submissions import Submission
from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.ids import DEFAULT_QUEUE, JobId, is_job_id_of, is_queue, split_job_id
from jobwire_server.domain.model import (
    NewJob,
    NotNow,
    RequestId,
    Route,
    UniqueConflict,
    UniqueKey,
    UniqueScope,
)
from jobwire_server.domain.options import Limits
from jobwire_server.servicers.checks import (
    DAY_MS,
    TEN_YEARS_MS,
    TURN_S,
    Checker,
    check_retry,
    is_operation,
    is_sound,
)
from jobwire_server.servicers.records import RESERVED_LABELS

MAX_PRIORITY = 255
MAX_KEY_BYTES = 128
SMALL_BATCH_BYTES = 64 << 10
"""Of a batch that is checked in one go."""
MAX_PERIOD_MS = 365 * DAY_MS

_FIELDS = job_pb2.JobSpec.DESCRIPTOR.fields_by_name
_OPERATION, _PAYLOAD = _FIELDS["operation"], _FIELDS["payload"]


class JobChecks:
    """Checks the jobs that requests ask for.

    Args:
        limits: What they may hold.
        new_jobs: Makes jobs of what was checked.
        now_ms: The store's clock.
    """

    def __init__(self, limits: Limits, new_jobs: NewJobs, now_ms: Callable[[], int]) -> None:
        self._limits = limits
        self._new_jobs = new_jobs
        self._now_ms = now_ms

    def check(
        self,
        request: job_service_pb2.SubmitJobRequest,
        request_id: str = "",
        *,
        inside: str = "",
    ) -> Submission:
        """Return the job that a request asks for, or what is wrong with it, field by field.

        Args:
            request: What to submit.
            request_id: Its id if it has none of its own, for example by its index in a batch.
            inside: The path that it has in a larger request, with a dot at its end.
        """
        spec = request.spec
        queue = request.queue or DEFAULT_QUEUE
        job_id: JobId = request.job_id  # type: ignore[assignment]  # '' or checked below
        fields = spec.ListFields()
        # Nearly all jobs have an operation and a payload and nothing else. Whatever is unusual or
        # wrong about one is found and said on the long way.
        if (
            len(fields) == 2
            and fields[0][0] is _OPERATION
            and fields[1][0] is _PAYLOAD
            and not request_id
            and not request.request_id
            # Before the cache, which must not keep megabytes of nonsense.
            and len(queue) + len(operation := fields[0][1]) <= 256
            and (route := _route_of_names(queue, operation))
            and (not job_id or is_job_id_of(queue, job_id))
            and len(content := spec.SerializeToString()) <= self._limits.max_payload_bytes
            and is_sound(fields[1][1])
        ):
            return self._new_jobs.plain(queue, route, content, job_id)
        checker = Checker(inside)
        return self._unusual(request, checker, self._now_ms(), request.request_id or request_id)

    def _unusual(
        self, request: job_service_pb2.SubmitJobRequest, checker: Checker, now: int, request_id: str
    ) -> Submission:
        spec = request.spec
        operation = spec.operation
        if spec.HasField("payload"):
            checker.payload("spec.payload", spec.payload, self._limits.max_payload_bytes)
        checker.operation("spec.operation", operation)
        priority = checker.number("spec.priority", spec.priority, 0, MAX_PRIORITY)
        queue = checker.queue("queue", request.queue)
        job_id: JobId = request.job_id  # type: ignore[assignment]  # '' or checked here
        if job_id:
            parts = split_job_id(job_id)
            if is_queue(queue) and (parts is None or parts[0] != queue):
                checker.add(
                    "job_id",
                    f"must be {queue}-<26 lower-case ULID characters>, not {job_id[:120]!r}",
                )
        run_at = delay = timeout = max_output = 0
        trim_output = False
        retry = unique = retention = None
        checker.labels("spec.requirements", spec.requirements)
        checker.labels("spec.labels", spec.labels)
        for key in spec.labels:
            if key.startswith(RESERVED_LABELS):
                checker.add(
                    f"spec.labels[{key[:80]!r}]",
                    f"may not begin with {RESERVED_LABELS}, which is for the broker's own labels",
                )
        checker.headers("spec.headers", spec.headers)
        checker.features("spec.required_features", spec.required_features)
        if spec.group_key:
            checker.lacks("spec.group_key", "groups")
        if spec.dependencies:
            checker.lacks("spec.dependencies", "dependencies")
        requirements = dict(spec.requirements)
        start = spec.WhichOneof("start")
        if start == "run_at":
            run_at = checker.moment_ms("spec.run_at", spec.run_at, now + TEN_YEARS_MS)
        elif start == "delay":
            delay = checker.duration_ms("spec.delay", spec.delay, 0, TEN_YEARS_MS)
        starts = _Start(now, run_at, delay)
        expires_at, expires_after = _end(checker, spec, "expiry", starts)
        deadline, deadline_after = _end(checker, spec, "end", starts)
        if spec.HasField("execution_timeout"):
            timeout = checker.duration_ms(
                "spec.execution_timeout", spec.execution_timeout, 100, 30 * DAY_MS
            )
        if spec.HasField("retry"):
            retry = check_retry(checker, "spec.retry", spec.retry)
        if spec.HasField("output"):
            max_output, trim_output = self._output(checker, spec.output)
        if spec.HasField("unique"):
            unique = _unique(checker, spec.unique)
        if spec.HasField("retention"):
            retention = checker.duration_ms("spec.retention", spec.retention, 0, TEN_YEARS_MS)
        if request_id:
            checker.request_id("request_id", request_id)
        if not checker.only_now:
            return checker.error()
        draft = NewJob(
            job_id,
            queue,
            route_of(operation, requirements),
            priority,
            # In one form for one content, which its digest depends on.
            spec.SerializeToString(deterministic=bool(request_id)),
            # A start in the past is now; the store's clock settles what is close.
            run_at if run_at > now else 0,
            delay,
            expires_at,
            timeout,
            retry,
            max_output,
            trim_output,
            deadline,
            request=RequestId(request_id, "", bool(job_id)) if request_id else None,
            unique=unique,
            retention_ms=retention,
            keeps_zero=priority == 0 and spec.HasField("priority"),
        )
        job = self._new_jobs.make(draft, expires_after, deadline_after)
        if checker.violations:
            return NotNow(job, checker.error(), bool(job_id or request_id))
        return job

    def _output(self, checker: Checker, policy: job_pb2.OutputPolicy) -> tuple[int, bool]:
        most = self._limits.max_output_bytes
        if not 0 <= policy.max_bytes <= most:
            text = f"must be 0 to {most}, not {policy.max_bytes}"
            checker.add("spec.output.max_bytes", text, now=policy.max_bytes > 0)
        if policy.overflow not in job_pb2.OutputOverflow.values():
            checker.add("spec.output.overflow", "must be REFUSE or TRIM")
        return policy.max_bytes, policy.overflow == job_pb2.OUTPUT_OVERFLOW_TRIM


@lru_cache(maxsize=4096)
def _route_of_names(queue: str, operation: str) -> Route | None:
    """Return the route of a job without requirements; None if one of the names is malformed."""
    return route_of(operation, {}) if is_queue(queue) and is_operation(operation) else None


class _Start(NamedTuple):
    """When a job becomes ready, ms."""

    now: int
    run_at: int
    delay: int


def _end(
    checker: Checker, spec: job_pb2.JobSpec, which: Literal["expiry", "end"], start: _Start
) -> tuple[int, int]:
    """Return a moment, Unix ms, and a duration, ms, of which at most one is not 0."""
    name = spec.WhichOneof(which)
    if name is None:
        return 0, 0
    field, now = f"spec.{name}", start.now
    if name in ("expires_at", "deadline"):
        moment = checker.moment_ms(field, getattr(spec, name), now + TEN_YEARS_MS)
        if 0 < moment <= max(now + start.delay, start.run_at):
            checker.add(field, "must lie after now and after the job's start", now=True)
        return moment, 0
    after = checker.duration_ms(field, getattr(spec, name), 1, TEN_YEARS_MS)
    if 0 < after <= start.delay:
        checker.add(field, "must be longer than the delay")
    elif after > 0 and now + after <= start.run_at:
        checker.add(field, "must not be over before run_at", now=True)
    return 0, after


def _unique(checker: Checker, unique: job_pb2.UniqueKey) -> UniqueKey:
    if not unique.key or len(unique.key.encode()) > MAX_KEY_BYTES:
        checker.add("spec.unique.key", f"must have 1 to {MAX_KEY_BYTES} bytes")
    if unique.scope not in job_pb2.UniqueScope.values():
        checker.add("spec.unique.scope", "must be PENDING, UNFINISHED or PERIOD")
        return UniqueKey(unique.key)
    if unique.on_conflict not in job_pb2.UniqueConflict.values():
        checker.add("spec.unique.on_conflict", "must be RETURN_EXISTING, REJECT or REPLACE_PENDING")
        return UniqueKey(unique.key)
    scope = UniqueScope(unique.scope or UniqueScope.UNFINISHED)
    period = 0
    if scope is UniqueScope.PERIOD:
        if unique.HasField("period"):
            period = checker.duration_ms("spec.unique.period", unique.period, 1000, MAX_PERIOD_MS)
        else:
            checker.add("spec.unique.period", "must be set for the scope PERIOD: 1 s to 365 days")
    elif unique.HasField("period"):
        checker.add("spec.unique.period", "may be set for the scope PERIOD alone")
    return UniqueKey(
        unique.key,
        scope,
        period,
        UniqueConflict(unique.on_conflict or UniqueConflict.RETURN_EXISTING),
    )


async def check_batch(
    jobs: JobChecks,
    requests: Iterable[job_service_pb2.SubmitJobRequest],
    size: int,
    batch_id: str = "",
) -> list[Submission]:
    """Return what each request of a batch asks for; with a batch's id, each is named by it.

    Other calls have their turn while a batch with much to read is checked.

    Args:
        jobs: Checks each.
        requests: The batch.
        size: Its bytes.
        batch_id: Its id, '' for none.
    """
    if not batch_id and size <= SMALL_BATCH_BYTES:
        return [jobs.check(item) for item in requests]
    checked = []
    until = perf_counter() + TURN_S
    for at, item in enumerate(requests):
        checked.append(jobs.check(item, f"{batch_id}:{at}" if batch_id else ""))
        if perf_counter() > until:
            await asyncio.sleep(0)
            until = perf_counter() + TURN_S
    return checked

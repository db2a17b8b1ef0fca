"""From a SubmitJobRequest to a job at the door."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b

from google.protobuf.timestamp_pb2 import Timestamp

from jobwire.v1 import job_pb2, job_service_pb2
from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.errors import AlreadyExists, InvalidRequest
from jobwire_server.domain.ids import is_job_id_of, is_queue, split_job_id
from jobwire_server.domain.model import (
    Accepted,
    NewJob,
    RequestId,
    Route,
    UniqueConflict,
    UniqueKey,
    UniqueScope,
)
from jobwire_server.domain.options import Limits
from jobwire_server.servicers.checks import (
    DAY_MS,
    DEFAULT_QUEUE,
    TEN_YEARS_MS,
    Checker,
    check_retry,
    is_operation,
    is_sound,
)
from jobwire_server.store.records import RESERVED_LABELS

SCHEMA_VERSION = 1
MAX_PRIORITY = 255
MAX_KEY_BYTES = 128
MAX_PERIOD_MS = 365 * DAY_MS

_FIELDS = job_pb2.JobSpec.DESCRIPTOR.fields_by_name
_OPERATION, _PAYLOAD = _FIELDS["operation"], _FIELDS["payload"]


class NotNow(InvalidRequest):
    """A job that is refused for the time or a setting of the server alone: it was right before,
    perhaps, and accepted then.

    Args:
        refusal: If it was not.
        job: To ask for.
        named: True if the caller gave it an id, so that it can be known.
    """

    def __init__(self, refusal: InvalidRequest, job: NewJob, named: bool) -> None:
        super().__init__(refusal.violations)
        self.refusal = refusal
        self.job = job
        self.named = named


class Submissions:
    """Checks submitted jobs and makes their records.

    Args:
        limits: What they may hold.
        now_ms: The store's clock.
        new_ulid: Makes ids.
    """

    def __init__(
        self, limits: Limits, now_ms: Callable[[], int], new_ulid: Callable[[], str]
    ) -> None:
        self._limits = limits
        self._now_ms = now_ms
        self._new_ulid = new_ulid
        self._stamp_ms = -1
        self._stamp = b""

    def new_job(self, request: job_service_pb2.SubmitJobRequest, request_id: str = "") -> NewJob:
        """Returns the job that a request asks for.

        Args:
            request: What to submit.
            request_id: Its id if it has none of its own, for example by its place in a batch.

        Raises:
            InvalidRequest: With a violation for each field that is wrong; NotNow if each of them
                may have been right before.
        """
        now = self._now_ms()
        if now != self._stamp_ms:
            self._make_stamp(now)
        spec = request.spec
        queue, job_id = request.queue or DEFAULT_QUEUE, request.job_id
        fields = spec.ListFields()
        # Nearly all jobs have an operation and a payload and nothing else. Whatever is unusual or
        # wrong about one is found and said on the long way.
        if (
            len(fields) == 2
            and fields[0][0] is _OPERATION
            and fields[1][0] is _PAYLOAD
            and is_sound(fields[1][1])
            and not request_id
            and not request.request_id
            and (route := _plain_route(queue, fields[0][1]))
            and (not job_id or is_job_id_of(queue, job_id))
            and len(record := spec.SerializeToString()) <= self._limits.max_payload_bytes
        ):
            return NewJob(
                job_id or f"{queue}-{self._new_ulid()}", queue, route, 0, record + self._stamp
            )
        return self._unusual(request, Checker(), now, request.request_id or request_id)

    def _unusual(
        self, request: job_service_pb2.SubmitJobRequest, checker: Checker, now: int, request_id: str
    ) -> NewJob:
        spec = request.spec
        operation, priority = spec.operation, spec.priority
        if spec.HasField("payload"):
            checker.payload("spec.payload", spec.payload, self._limits.max_payload_bytes)
        checker.operation("spec.operation", operation)
        if priority > MAX_PRIORITY:
            checker.add("spec.priority", f"must be 0 to {MAX_PRIORITY}, not {priority}")
        queue = checker.queue("queue", request.queue)
        job_id = request.job_id
        if job_id:
            parts = split_job_id(job_id)
            if is_queue(queue) and (parts is None or parts[0] != queue):
                checker.add(
                    "job_id",
                    f"must be {queue}-<26 lower-case ULID characters>, not {job_id[:120]!r}",
                )
        else:
            job_id = f"{queue}-{self._new_ulid()}"
        run_at = delay = expires_at = deadline = timeout = max_output = 0
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
        requirements = dict(spec.requirements)
        start = spec.WhichOneof("start")
        if start == "run_at":
            run_at = checker.moment_ms("spec.run_at", spec.run_at, now + TEN_YEARS_MS)
        elif start == "delay":
            delay = checker.duration_ms("spec.delay", spec.delay, 0, TEN_YEARS_MS)
        if spec.HasField("expires_at"):
            expires_at = checker.moment_ms("spec.expires_at", spec.expires_at, now + TEN_YEARS_MS)
            if 0 < expires_at <= max(now + delay, run_at):
                checker.add(
                    "spec.expires_at", "must lie after now and after the job's start", now=True
                )
        if spec.HasField("deadline"):
            deadline = checker.moment_ms("spec.deadline", spec.deadline, now + TEN_YEARS_MS)
            if 0 < deadline <= max(now + delay, run_at):
                checker.add(
                    "spec.deadline", "must lie after now and after the job's start", now=True
                )
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
        spec.ClearField("created_at")
        spec.ClearField("schema_version")
        request_key = None
        if request_id:
            checker.request_id("request_id", request_id)
            request_key = RequestId(request_id, _digest(spec), bool(request.job_id))
        if not checker.only_now:
            raise checker.error()
        job = NewJob(
            job_id,
            queue,
            route_of(operation, requirements),
            priority,
            spec.SerializeToString() + self._stamp,
            # A start in the past is now; the store's clock settles what is close.
            run_at if run_at > now else 0,
            delay,
            expires_at,
            timeout,
            retry,
            max_output,
            trim_output,
            deadline,
            request=request_key,
            unique=unique,
            retention_ms=retention,
        )
        if checker.violations:
            raise NotNow(checker.error(), job, bool(request.job_id or request_id))
        return job

    def _output(self, checker: Checker, policy: job_pb2.OutputPolicy) -> tuple[int, bool]:
        most = self._limits.max_output_bytes
        if policy.max_bytes > most:
            text = f"must be at most {most}, not {policy.max_bytes}"
            checker.add("spec.output.max_bytes", text, now=True)
        if policy.overflow not in job_pb2.OutputOverflow.values():
            checker.add("spec.output.overflow", "must be REFUSE or TRIM")
        return policy.max_bytes, policy.overflow == job_pb2.OUTPUT_OVERFLOW_TRIM

    def _make_stamp(self, now_ms: int) -> None:
        """Serializes the fields that the broker adds to a record; one moment's jobs share them."""
        moment = Timestamp(seconds=now_ms // 1000, nanos=now_ms % 1000 * 1_000_000)
        self._stamp = job_pb2.JobSpec(
            created_at=moment, schema_version=SCHEMA_VERSION
        ).SerializeToString()
        self._stamp_ms = now_ms


def _plain_route(queue: str, operation: str) -> Route | None:
    """Returns the route of a job without requirements; None if one of the names is malformed."""
    # Before the cache, which must not keep megabytes of nonsense.
    return _route_of_names(queue, operation) if len(queue) + len(operation) <= 256 else None


@lru_cache(maxsize=4096)
def _route_of_names(queue: str, operation: str) -> Route | None:
    return route_of(operation, {}) if is_queue(queue) and is_operation(operation) else None


def _unique(checker: Checker, unique: job_pb2.UniqueKey) -> UniqueKey:
    if not 0 < len(unique.key.encode()) <= MAX_KEY_BYTES:
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


def _digest(spec: job_pb2.JobSpec) -> str:
    """Returns 32 characters that tell one content from another; what the broker adds is not in
    it.
    """
    return blake2b(spec.SerializeToString(deterministic=True), digest_size=16).hexdigest()


def check_same(accepted: Accepted, job: NewJob) -> None:
    """Checks a repeated submission against the record that its id has.

    Raises:
        AlreadyExists: The content is another.
    """
    if not accepted.existing_record:
        return  # Written now, or another job's: by the request id or the unique key.
    specs = [
        job_pb2.JobSpec.FromString(record) for record in (accepted.existing_record, job.record)
    ]
    for spec in specs:
        spec.ClearField("created_at")
        spec.ClearField("schema_version")
    if specs[0] != specs[1]:
        raise AlreadyExists(
            f"{job.job_id} was submitted with other content; give the new job an id of its own",
            metadata={"job_id": job.job_id},
        )

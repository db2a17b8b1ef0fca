"""From a SubmitJobRequest to a job at the door."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

from jobwire.v1 import job_pb2, job_service_pb2
from jobwire_server.errors import AlreadyExists
from jobwire_server.ids import split_job_id
from jobwire_server.model import Accepted, NewJob
from jobwire_server.operations.routing import route_of
from jobwire_server.options import Limits
from jobwire_server.servicers.checks import (
    DAY_MS,
    DEFAULT_QUEUE,
    TEN_YEARS_MS,
    Checker,
    check_retry,
    is_operation,
    is_queue,
)

SCHEMA_VERSION = 1
MAX_PRIORITY = 255

# Field numbers of JobSpec, for one pass over the fields that are set.
_FIELDS = job_pb2.JobSpec.DESCRIPTOR.fields_by_name
_OPERATION = _FIELDS["operation"].number
_PAYLOAD = _FIELDS["payload"].number
_PRIORITY = _FIELDS["priority"].number


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

    def new_job(self, request: job_service_pb2.SubmitJobRequest) -> NewJob:
        """Returns the job that a request asks for.

        Raises:
            InvalidRequest: With a violation for each field that is wrong.
        """
        now = self._now_ms()
        checker: Checker | None = None
        spec = request.spec
        operation = ""
        priority = 0
        rare: list[int] = []
        for field, value in spec.ListFields():
            number = field.number
            if number == _OPERATION:
                operation = value
            elif number == _PAYLOAD:
                checker = checker or Checker()
                checker.payload("spec.payload", value, self._limits.max_payload_bytes)
            elif number == _PRIORITY:
                priority = value
            else:
                rare.append(number)
        if rare or request.job_id or request.queue or priority or not is_operation(operation):
            checker = checker or Checker()
            job = self._unusual(request, checker, operation, priority, rare, now)
            checker.raise_if_any()
            return job
        if checker is not None and checker.violations:
            checker.raise_if_any()
        # A job with an operation and a payload and nothing else.
        return NewJob(
            f"{DEFAULT_QUEUE}-{self._new_ulid()}",
            DEFAULT_QUEUE,
            route_of(operation, {}),
            0,
            spec.SerializeToString() + self._stamp_of(now),
        )

    def _unusual(
        self,
        request: job_service_pb2.SubmitJobRequest,
        checker: Checker,
        operation: str,
        priority: int,
        rare: list[int],
        now: int,
    ) -> NewJob:
        spec = request.spec
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
        retry = None
        requirements: dict[str, str] = {}
        if rare:
            checker.labels("spec.requirements", spec.requirements)
            checker.labels("spec.labels", spec.labels)
            requirements = dict(spec.requirements)
            start = spec.WhichOneof("start")
            if start == "run_at":
                run_at = checker.moment_ms("spec.run_at", spec.run_at, now + TEN_YEARS_MS)
            elif start == "delay":
                delay = checker.duration_ms("spec.delay", spec.delay, 0, TEN_YEARS_MS)
            if spec.HasField("expires_at"):
                expires_at = checker.moment_ms(
                    "spec.expires_at", spec.expires_at, now + TEN_YEARS_MS
                )
                if 0 < expires_at <= max(now + delay, run_at):
                    checker.add("spec.expires_at", "must lie after now and after the job's start")
            if spec.HasField("deadline"):
                deadline = checker.moment_ms("spec.deadline", spec.deadline, now + TEN_YEARS_MS)
                if 0 < deadline <= max(now + delay, run_at):
                    checker.add("spec.deadline", "must lie after now and after the job's start")
            if spec.HasField("execution_timeout"):
                timeout = checker.duration_ms(
                    "spec.execution_timeout", spec.execution_timeout, 100, 30 * DAY_MS
                )
            if spec.HasField("retry"):
                retry = check_retry(checker, "spec.retry", spec.retry)
            if spec.HasField("output"):
                max_output, trim_output = self._output(checker, spec.output)
            spec.ClearField("created_at")
            spec.ClearField("schema_version")
        if checker.violations:
            checker.raise_if_any()
        return NewJob(
            job_id,
            queue,
            route_of(operation, requirements),
            priority,
            spec.SerializeToString() + self._stamp_of(now),
            # A start in the past is now; the store's clock settles what is close.
            run_at if run_at > now else 0,
            delay,
            expires_at,
            timeout,
            retry,
            max_output,
            trim_output,
            deadline,
        )

    def _output(self, checker: Checker, policy: job_pb2.OutputPolicy) -> tuple[int, bool]:
        most = self._limits.max_output_bytes
        if policy.max_bytes > most:
            checker.add("spec.output.max_bytes", f"must be at most {most}, not {policy.max_bytes}")
        if policy.overflow not in job_pb2.OutputOverflow.values():
            checker.add("spec.output.overflow", "must be REFUSE or TRIM")
        return policy.max_bytes, policy.overflow == job_pb2.OUTPUT_OVERFLOW_TRIM

    def _stamp_of(self, now_ms: int) -> bytes:
        """Returns the serialized fields that the broker adds to a record; one moment's jobs share
        them.
        """
        if now_ms != self._stamp_ms:
            moment = Timestamp(seconds=now_ms // 1000, nanos=now_ms % 1000 * 1_000_000)
            self._stamp = job_pb2.JobSpec(
                created_at=moment, schema_version=SCHEMA_VERSION
            ).SerializeToString()
            self._stamp_ms = now_ms
        return self._stamp


def check_same(accepted: Accepted, job: NewJob) -> None:
    """Checks a repeated submission against the record that its id has.

    Raises:
        AlreadyExists: The content is another.
    """
    if accepted.existing_record is None:
        return
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

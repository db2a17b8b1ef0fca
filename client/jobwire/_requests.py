"""New jobs to requests. The job's id is made here, so that a repeated call is the same call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TypedDict

from jobwire._convert import Seconds, to_duration, to_timestamp
from jobwire.ids import new_job_id
from jobwire.models import NewJob, OutputPolicy, RetryPolicy
from jobwire.payloads import to_payload
from jobwire.v1.job_pb2 import JobSpec
from jobwire.v1.job_service_pb2 import SubmitJobRequest

MAX_CHUNK_JOBS = 500
# A quarter of the 16 MiB that a server takes in one message unless configured otherwise.
MAX_CHUNK_BYTES = 4 << 20
# Below it, sending a job's payload back with each of its states costs less than another call.
LIGHT_BYTES = 4 << 10


class SubmitOptions(TypedDict, total=False):
    """What `submit` takes beside operation and payload."""

    queue: str
    priority: int
    requirements: Mapping[str, str] | None
    labels: Mapping[str, str] | None
    retry: RetryPolicy | None
    execution_timeout: Seconds | None
    run_at: datetime | None
    delay: Seconds | None
    expires_at: datetime | None
    output: OutputPolicy | None
    job_id: str | None


def is_light(request: SubmitJobRequest) -> bool:
    """Tells whether it costs little to watch the job in full."""
    return request.ByteSize() <= LIGHT_BYTES


def submit_request(job: NewJob) -> SubmitJobRequest:
    """Builds the request for one job.

    Raises:
        TypeError, ValueError: The payload or a time can't be carried, or both `run_at` and
            `delay` are given.
    """
    if job.run_at is not None and job.delay is not None:
        raise ValueError("give run_at or delay, not both")
    if not 0 <= job.priority <= 255:
        raise ValueError(f"priority is {job.priority}; it must be from 0 to 255")
    spec = JobSpec(
        operation=job.operation,
        payload=to_payload(job.payload),
        priority=job.priority,
        requirements=job.requirements,
        labels=job.labels,
    )
    if job.retry is not None:
        spec.retry.CopyFrom(job.retry.to_proto())
    if job.execution_timeout is not None:
        spec.execution_timeout.CopyFrom(to_duration(job.execution_timeout))
    if job.run_at is not None:
        spec.run_at.CopyFrom(to_timestamp(job.run_at))
    if job.delay is not None:
        spec.delay.CopyFrom(to_duration(job.delay))
    if job.output is not None:
        spec.output.CopyFrom(job.output.to_proto())
    if job.expires_at is not None:
        spec.expires_at.CopyFrom(to_timestamp(job.expires_at))
    return SubmitJobRequest(
        queue=job.queue, spec=spec, job_id=job.job_id or new_job_id(job.queue or "default")
    )


def chunks(requests: Iterable[SubmitJobRequest]) -> Iterator[Sequence[SubmitJobRequest]]:
    """Cuts a batch into calls of at most MAX_CHUNK_JOBS and about MAX_CHUNK_BYTES."""
    chunk: list[SubmitJobRequest] = []
    size = 0
    for request in requests:
        request_bytes = request.ByteSize()
        if chunk and (len(chunk) == MAX_CHUNK_JOBS or size + request_bytes > MAX_CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(request)
        size += request_bytes
    if chunk:
        yield chunk

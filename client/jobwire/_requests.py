"""Turns new jobs and filters into requests.

A job's id is made here, so that a repeated call is the same call. If the caller gives a request id,
the server makes the job's id, since the same request may come from another process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypedDict

from jobwire._convert import Seconds, to_duration, to_timestamp
from jobwire.ids import new_job_id
from jobwire.models import FailureOrigin, JobState, NewJob, OutputPolicy, RetryPolicy
from jobwire.payloads import fill_payload
from jobwire.unique import UniqueKey
from jobwire.v1.job_pb2 import JobSpec
from jobwire.v1.job_service_pb2 import (
    JobFilter,
    ProduceRequest,
    SubmitJobRequest,
    SubmitJobsRequest,
)

MAX_CHUNK_JOBS = 500
# A quarter of the 16 MiB that a server takes in one message unless configured otherwise.
MAX_CHUNK_BYTES = 4 << 20
# Below this size, sending the payload back with each state costs less than another call.
LIGHT_BYTES = 4 << 10


class JobOptions(TypedDict, total=False):
    """What a submission and a schedule may say of a job; `NewJob` describes each."""

    priority: int | None
    requirements: Mapping[str, str] | None
    labels: Mapping[str, str] | None
    retry: RetryPolicy | None
    execution_timeout: Seconds | None
    output: OutputPolicy | None
    unique_key: str | UniqueKey | None
    retention: Seconds | None
    expires_after: Seconds | None
    deadline: datetime | timedelta | None
    headers: Mapping[str, str] | None
    required_features: Sequence[str]


class SubmitOptions(JobOptions, total=False):
    """What a submission may say besides operation and payload; `NewJob` describes each."""

    queue: str
    run_at: datetime | None
    delay: Seconds | None
    expires_at: datetime | None
    job_id: str | None
    request_id: str | None


class FilterOptions(TypedDict, total=False):
    """Which jobs; what is left out does not restrict."""

    states: Iterable[JobState]
    """Only jobs in these states."""
    operation: str
    """Only jobs of this operation."""
    labels: Mapping[str, str] | None
    """Only jobs with all of these labels."""
    failure_type: str
    """Only jobs whose failure is of this type, such as `EXECUTION_TIMEOUT`."""
    failure_origin: FailureOrigin
    """Only jobs whose failure was found by this one: the broker, or the worker."""
    submitted_after: datetime | None
    """Only jobs that were submitted at this moment or later."""
    submitted_before: datetime | None
    """Only jobs that were submitted before it."""
    finished_after: datetime | None
    """Only jobs that ended at this moment or later."""
    finished_before: datetime | None
    """Only jobs that ended before it."""
    job_ids: Iterable[str]
    """Only these jobs, of queues that are meant; at most 1000."""


def is_light(request: SubmitJobRequest) -> bool:
    """Tell whether watching the job in full costs little."""
    return request.ByteSize() <= LIGHT_BYTES


def submit_request(job: NewJob) -> SubmitJobRequest:
    """Build the request for one job.

    Raises:
        TypeError, ValueError: The payload or a time can't be carried, or both `run_at` and
            `delay` are given.
    """
    request = SubmitJobRequest()
    _fill_request(request, job)
    return request


def submission_frame(job: NewJob) -> ProduceRequest:
    """Build the frame that submits one job on a producer's stream.

    Raises:
        TypeError, ValueError: As for `submit_request`.
    """
    frame = ProduceRequest()
    _fill_request(frame.submissions.add().request, job)
    return frame


def _fill_request(request: SubmitJobRequest, job: NewJob) -> None:
    request.queue = job.queue
    _fill_spec(request.spec, job)
    if job.request_id:
        request.request_id = job.request_id
    if job.job_id or not job.request_id:
        request.job_id = job.job_id or new_job_id(job.queue or "default")


def job_spec(job: NewJob) -> JobSpec:
    """Build the spec of a job.

    Raises:
        TypeError, ValueError: As for `submit_request`.
    """
    spec = JobSpec()
    _fill_spec(spec, job)
    return spec


def _fill_spec(spec: JobSpec, job: NewJob) -> None:
    if job.run_at is not None and job.delay is not None:
        raise ValueError("give run_at or delay, not both")
    if job.expires_at is not None and job.expires_after is not None:
        raise ValueError("give expires_at or expires_after, not both")
    if job.priority is not None and not 0 <= job.priority <= 255:
        raise ValueError(f"priority is {job.priority}; it must be from 0 to 255")
    spec.operation = job.operation
    fill_payload(spec.payload, job.payload)
    if job.priority is not None:
        spec.priority = job.priority
    if job.requirements:
        spec.requirements.update(job.requirements)
    if job.labels:
        spec.labels.update(job.labels)
    if job.headers:
        spec.headers.update(job.headers)
    if job.required_features:
        spec.required_features.extend(job.required_features)
    if job.retry is not None:
        spec.retry.CopyFrom(job.retry.to_proto())
    if job.execution_timeout is not None and job.execution_timeout != math.inf:
        spec.execution_timeout.CopyFrom(to_duration(job.execution_timeout, "execution_timeout"))
    if job.run_at is not None:
        spec.run_at.CopyFrom(to_timestamp(job.run_at))
    if job.delay is not None:
        spec.delay.CopyFrom(to_duration(job.delay, "delay"))
    if job.output is not None:
        spec.output.CopyFrom(job.output.to_proto())
    if job.expires_at is not None:
        spec.expires_at.CopyFrom(to_timestamp(job.expires_at))
    if job.expires_after is not None:
        spec.expires_after.CopyFrom(to_duration(job.expires_after, "expires_after"))
    # A span is counted by the server: the clock of this machine may be wrong.
    if isinstance(job.deadline, timedelta):
        spec.deadline_after.CopyFrom(to_duration(job.deadline, "deadline"))
    elif job.deadline is not None:
        spec.deadline.CopyFrom(to_timestamp(job.deadline))
    if job.unique_key is not None:
        key = UniqueKey(job.unique_key) if isinstance(job.unique_key, str) else job.unique_key
        spec.unique.CopyFrom(key.to_proto())
    if job.retention is not None:
        spec.retention.CopyFrom(to_duration(job.retention, "retention"))


def submit_batches(jobs: Iterable[NewJob], request_id: str | None) -> list[SubmitJobsRequest]:
    """Build the calls for a batch, each of at most MAX_CHUNK_JOBS and about MAX_CHUNK_BYTES.

    Args:
        jobs: In their order.
        request_id: Makes the id of each job without one, with its position in the batch. The server
            could not do this, as it sees positions within one call.

    Raises:
        TypeError, ValueError: As for `submit_request`.
    """
    batches: list[SubmitJobsRequest] = []
    batch = SubmitJobsRequest()
    count = size = 0
    for position, job in enumerate(jobs):
        if request_id is not None and not (job.job_id or job.request_id):
            job = replace(job, request_id=f"{request_id}:{position}")
        # Made in its place, it is not copied into the batch.
        request = batch.requests.add()
        _fill_request(request, job)
        request_bytes = request.ByteSize()
        if count == MAX_CHUNK_JOBS or (count and size + request_bytes > MAX_CHUNK_BYTES):
            # This one is the first of the next call.
            batches.append(batch)
            batch = SubmitJobsRequest(requests=[batch.requests.pop()])
            count = size = 0
        count += 1
        size += request_bytes
    if count:
        batches.append(batch)
    return batches


def job_filter(queue: str, which: FilterOptions) -> JobFilter:
    """Build a filter.

    Raises:
        ValueError: A moment has no time zone.
    """
    found = JobFilter(
        queue=queue,
        states=[state.to_proto() for state in which.get("states", ())],
        operation=which.get("operation", ""),
        labels=which.get("labels"),
        failure_type=which.get("failure_type", ""),
        failure_origin=which.get("failure_origin", FailureOrigin.UNSPECIFIED).to_proto(),
        job_ids=which.get("job_ids", ()),
    )
    moments = {
        "submitted_after": which.get("submitted_after"),
        "submitted_before": which.get("submitted_before"),
        "finished_after": which.get("finished_after"),
        "finished_before": which.get("finished_before"),
    }
    for name, moment in moments.items():
        if moment is not None:
            getattr(found, name).CopyFrom(to_timestamp(moment))
    return found

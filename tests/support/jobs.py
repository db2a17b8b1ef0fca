"""Jobs and workers for tests of everything below the servicers."""

from __future__ import annotations

import time
from collections.abc import Mapping

from jobwire.v1 import job_pb2
from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.ids import UlidFactory
from jobwire_server.domain.model import (
    NewJob,
    RequestId,
    RetryPolicy,
    UniqueKey,
    WorkerSpec,
)
from jobwire_server.servicers.records import JobSpecRecords

OPERATION = "work"
DAY_MS = 86_400_000
STAMP = JobSpecRecords().stamp(1_800_000_000_000)

next_ulid = UlidFactory(lambda: time.time_ns() // 1_000_000)


def new_job(
    queue: str = "default",
    *,
    ulid: str = "",
    operation: str = OPERATION,
    requirements: Mapping[str, str] | None = None,
    priority: int = 0,
    payload: str = "",
    run_at_ms: int = 0,
    delay_ms: int = 0,
    expires_at_ms: int = 0,
    execution_timeout_ms: int = 0,
    retry: RetryPolicy | None = None,
    deadline_ms: int = 0,
    request: RequestId | None = None,
    unique: UniqueKey | None = None,
    retention_ms: int | None = None,
) -> NewJob:
    """Returns a job with a record as the servers write it."""
    requirements = requirements or {}
    spec = job_pb2.JobSpec(operation=operation, requirements=requirements, priority=priority)
    spec.payload.data = payload.encode()
    return NewJob(
        job_id=f"{queue}-{ulid or next_ulid()}",
        queue=queue,
        route=route_of(operation, requirements),
        priority=priority,
        record=spec.SerializeToString(deterministic=True) + STAMP,
        run_at_ms=run_at_ms,
        delay_ms=delay_ms,
        expires_at_ms=expires_at_ms,
        execution_timeout_ms=execution_timeout_ms,
        retry=retry,
        deadline_ms=deadline_ms,
        request=request,
        unique=unique,
        retention_ms=retention_ms,
    )


def ulid_of(job: NewJob | str) -> str:
    """Returns the ULID of a job or of a job id."""
    return (job if isinstance(job, str) else job.job_id)[-26:]


def worker_spec(
    worker_id: str = "w1",
    *,
    queues: tuple[str, ...] = ("default",),
    operations: tuple[str, ...] = (OPERATION,),
    labels: Mapping[str, str] | None = None,
    lease_ms: int = 0,
) -> WorkerSpec:
    """Returns a worker that takes what `new_job` makes."""
    return WorkerSpec(worker_id, queues, frozenset(operations), labels or {}, lease_ms=lease_ms)

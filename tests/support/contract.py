"""The contract's messages without their types, for requests that no typed code would make."""

from __future__ import annotations

from typing import Any

from jobwire.v1 import (
    admin_service_pb2,
    errors_pb2,
    job_service_pb2,
    schedule_service_pb2,
    worker_service_pb2,
)
from jobwire.v1 import job_pb2 as _job_pb2

admin: Any = admin_service_pb2
errors: Any = errors_pb2
job_pb2: Any = _job_pb2
jobs: Any = job_service_pb2
schedules: Any = schedule_service_pb2
workers: Any = worker_service_pb2

"""Jobwire: submit jobs, watch them, run them.

    from jobwire import Client, Worker

`Client` and `AsyncClient` are for producers and operators, `Worker` for handlers. What they
raise is in `jobwire.errors`, what they return in `jobwire.models` and `jobwire.operators`.
"""

from __future__ import annotations

from jobwire._async.client import AsyncClient
from jobwire._async.handle import AsyncBatchError, AsyncJobHandle
from jobwire._connection import Tls, __version__
from jobwire._sync.client import Client
from jobwire._sync.handle import BatchError, JobHandle
from jobwire.context import Context, Report, TestContext
from jobwire.errors import (
    AccessDenied,
    AlreadyExists,
    CallError,
    DeadlineExceeded,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobUnsuccessful,
    JobwireError,
    LeaseLost,
    NotFound,
    PreconditionFailed,
    ResourceExhausted,
    Unavailable,
    Violation,
    WrongState,
)
from jobwire.models import (
    Attempt,
    AttemptOutcome,
    Failure,
    Job,
    JobState,
    NewJob,
    Progress,
    RetryPolicy,
)
from jobwire.operators import (
    Lease,
    QueueInfo,
    QueueRates,
    QueueTotals,
    ServerInfo,
    WorkerInfo,
    WorkerStatus,
    WorkerTotals,
)
from jobwire.payloads import Payload, from_payload, to_payload
from jobwire.signals import Fatal, Retry, Stopped
from jobwire.worker import Worker, WorkerStats

__all__ = [
    "AccessDenied",
    "AlreadyExists",
    "AsyncBatchError",
    "AsyncClient",
    "AsyncJobHandle",
    "Attempt",
    "AttemptOutcome",
    "BatchError",
    "CallError",
    "Client",
    "Context",
    "DeadlineExceeded",
    "Failure",
    "Fatal",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
    "JobHandle",
    "JobState",
    "JobUnsuccessful",
    "JobwireError",
    "Lease",
    "LeaseLost",
    "NewJob",
    "NotFound",
    "Payload",
    "PreconditionFailed",
    "Progress",
    "QueueInfo",
    "QueueRates",
    "QueueTotals",
    "Report",
    "ResourceExhausted",
    "Retry",
    "RetryPolicy",
    "ServerInfo",
    "Stopped",
    "TestContext",
    "Tls",
    "Unavailable",
    "Violation",
    "Worker",
    "WorkerInfo",
    "WorkerStats",
    "WorkerStatus",
    "WorkerTotals",
    "WrongState",
    "__version__",
    "from_payload",
    "to_payload",
]

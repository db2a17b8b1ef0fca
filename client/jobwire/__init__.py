"""Jobwire: submit jobs, watch them, run them.

    from jobwire import Client, Worker

`Client` and `AsyncClient` are for producers and operators, `Worker` for handlers. What they
raise is in `jobwire.errors`, what they return in `jobwire.models` and `jobwire.operators`.
"""

from __future__ import annotations

from jobwire._async.client import AsyncClient
from jobwire._async.handle import AsyncBatchError, AsyncJobHandle
from jobwire._async.watching import AsyncJobWatch
from jobwire._connection import Tls, __version__
from jobwire._sync.client import Client
from jobwire._sync.handle import BatchError, JobHandle
from jobwire._sync.watching import JobWatch
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
    OutputFull,
    OutputTrimmed,
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
    OutputChunk,
    OutputPolicy,
    OutputPosition,
    Progress,
    RetryPolicy,
)
from jobwire.operators import (
    Lease,
    QueueConfig,
    QueueInfo,
    QueueRates,
    QueueTotals,
    ServerInfo,
    WorkerChange,
    WorkerInfo,
    WorkerStatus,
    WorkerTotals,
)
from jobwire.output import OutputHandler
from jobwire.payloads import Payload, from_payload, to_payload
from jobwire.signals import Fatal, Retry, Stopped
from jobwire.worker import Worker, WorkerStats

__all__ = [
    "AccessDenied",
    "AlreadyExists",
    "AsyncBatchError",
    "AsyncClient",
    "AsyncJobHandle",
    "AsyncJobWatch",
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
    "JobWatch",
    "JobwireError",
    "Lease",
    "LeaseLost",
    "NewJob",
    "NotFound",
    "OutputChunk",
    "OutputFull",
    "OutputHandler",
    "OutputPolicy",
    "OutputPosition",
    "OutputTrimmed",
    "Payload",
    "PreconditionFailed",
    "Progress",
    "QueueConfig",
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
    "WorkerChange",
    "WorkerInfo",
    "WorkerStats",
    "WorkerStatus",
    "WorkerTotals",
    "WrongState",
    "__version__",
    "from_payload",
    "to_payload",
]

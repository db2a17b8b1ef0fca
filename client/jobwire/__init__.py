"""Jobwire: submit jobs, watch them, run them.

    from jobwire import Client, Worker

`Client` and `AsyncClient` are for producers and operators, `Worker` for handlers. What they
raise is in `jobwire.errors`, what they return in `jobwire.models`, `jobwire.schedules` and
`jobwire.operators`.
"""

from __future__ import annotations

import logging

from jobwire._async.bulk import AsyncBulkAction
from jobwire._async.client import AsyncClient
from jobwire._async.handle import AsyncBatchError, AsyncJobHandle
from jobwire._async.watching import AsyncJobWatch
from jobwire._capture import OutputHandler
from jobwire._connection import Tls, __version__
from jobwire._sync.bulk import BulkAction
from jobwire._sync.client import Client
from jobwire._sync.handle import BatchError, JobHandle
from jobwire._sync.watching import JobWatch
from jobwire.bulk import BulkProgress
from jobwire.context import Context, Report, TestContext
from jobwire.errors import (
    AccessDenied,
    AlreadyExists,
    CallError,
    ChangedMeanwhile,
    ClientClosed,
    DeadlineExceeded,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    JobUnsuccessful,
    JobwireError,
    LeaseLost,
    NotFound,
    OutputFull,
    OutputTrimmed,
    PreconditionFailed,
    QueueFull,
    QueueNotFound,
    ResourceExhausted,
    ScheduleNotFound,
    Unavailable,
    UniqueKeyTaken,
    Violation,
    WorkerNotFound,
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
    Redrive,
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
from jobwire.payloads import Payload, from_payload, to_payload
from jobwire.schedules import Schedule, ScheduleRun
from jobwire.signals import Fatal, Retry, Stopped
from jobwire.unique import UniqueKey
from jobwire.worker import JobFilter, ProcessOptions, Worker, WorkerStats

__all__ = [
    "AccessDenied",
    "AlreadyExists",
    "AsyncBatchError",
    "AsyncBulkAction",
    "AsyncClient",
    "AsyncJobHandle",
    "AsyncJobWatch",
    "Attempt",
    "AttemptOutcome",
    "BatchError",
    "BulkAction",
    "BulkProgress",
    "CallError",
    "ChangedMeanwhile",
    "Client",
    "ClientClosed",
    "Context",
    "DeadlineExceeded",
    "Failure",
    "Fatal",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
    "JobFilter",
    "JobHandle",
    "JobNotFound",
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
    "ProcessOptions",
    "Progress",
    "QueueConfig",
    "QueueFull",
    "QueueInfo",
    "QueueNotFound",
    "QueueRates",
    "QueueTotals",
    "Redrive",
    "Report",
    "ResourceExhausted",
    "Retry",
    "RetryPolicy",
    "Schedule",
    "ScheduleNotFound",
    "ScheduleRun",
    "ServerInfo",
    "Stopped",
    "TestContext",
    "Tls",
    "Unavailable",
    "UniqueKey",
    "UniqueKeyTaken",
    "Violation",
    "Worker",
    "WorkerChange",
    "WorkerInfo",
    "WorkerNotFound",
    "WorkerStats",
    "WorkerStatus",
    "WorkerTotals",
    "WrongState",
    "__version__",
    "from_payload",
    "to_payload",
]

# What a library says goes where the application sends it, and nowhere unless it does.
logging.getLogger("jobwire").addHandler(logging.NullHandler())

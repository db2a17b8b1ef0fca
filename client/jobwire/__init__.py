"""Jobwire: submit jobs, watch them, run them.

    from jobwire import Client, Worker

`Client` and `AsyncClient` are for producers and operators, `Worker` for handlers. What they
raise is in `jobwire.errors`, what they return in `jobwire.models`, `jobwire.schedules` and
`jobwire.operators`.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

# Imported when it is first used: whoever only submits needs no worker, and the server, which reads
# the contract in `jobwire.v1`, nothing of it. The same names stand in `__init__.pyi`.
_WHERE = {
    "_async.bulk": ("AsyncBulkAction",),
    "_async.client": ("AsyncClient",),
    "_async.handle": (
        "AsyncBatchError",
        "AsyncJobHandle",
    ),
    "_async.watching": ("AsyncJobWatch",),
    "_capture": ("OutputHandler",),
    "_connection": (
        "Tls",
        "__version__",
    ),
    "_sync.bulk": ("BulkAction",),
    "_sync.client": ("Client",),
    "_sync.handle": (
        "BatchError",
        "JobHandle",
    ),
    "_sync.watching": ("JobWatch",),
    "bulk": ("BulkProgress",),
    "context": (
        "Context",
        "Report",
        "TestContext",
    ),
    "errors": (
        "AccessDenied",
        "AlreadyExists",
        "CallError",
        "ChangedMeanwhile",
        "ClientClosed",
        "DeadlineExceeded",
        "InvalidRequest",
        "JobCancelled",
        "JobExpired",
        "JobFailed",
        "JobNotFound",
        "JobUnsuccessful",
        "JobwireError",
        "LeaseLost",
        "NotFound",
        "OutputFull",
        "OutputTrimmed",
        "PreconditionFailed",
        "QueueFull",
        "QueueInUse",
        "QueueNotFound",
        "ResourceExhausted",
        "ScheduleNotFound",
        "TooManyQueues",
        "Unavailable",
        "UniqueKeyTaken",
        "Violation",
        "WorkerNotFound",
        "WrongState",
    ),
    "models": (
        "Attempt",
        "AttemptOutcome",
        "Failure",
        "FailureOrigin",
        "Job",
        "JobState",
        "NewJob",
        "OutputChunk",
        "OutputPolicy",
        "OutputPosition",
        "Progress",
        "Redrive",
        "RetryPolicy",
    ),
    "operators": (
        "Lease",
        "QueueConfig",
        "QueueInfo",
        "QueueRates",
        "QueueTotals",
        "ServerInfo",
        "WorkerChange",
        "WorkerInfo",
        "WorkerStatus",
        "WorkerTotals",
    ),
    "payloads": (
        "Json",
        "Payload",
        "UnknownPayload",
        "from_payload",
        "to_payload",
    ),
    "schedules": (
        "Schedule",
        "ScheduleRun",
    ),
    "signals": (
        "Fatal",
        "Retry",
        "Stopped",
    ),
    "unique": ("UniqueKey",),
    "worker": (
        "JobFilter",
        "ProcessOptions",
        "Worker",
        "WorkerStats",
    ),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}
_MODULES = ("bulk", "context", "errors", "ids", "models", "operators", "output", "payloads")
_MODULES += ("schedules", "signals", "unique", "worker")

__all__ = [*sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is not None:
        value = getattr(import_module(f"jobwire.{module}"), name)
    elif name in _MODULES:
        value = import_module(f"jobwire.{name}")
    else:
        raise AttributeError(f"module 'jobwire' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, *_MODULES})


# What a library says goes where the application sends it, and nowhere unless it does.
logging.getLogger("jobwire").addHandler(logging.NullHandler())

"""The values of the domain, free of transport and store.

A job's *record* is what its producer wrote, as opaque bytes that nobody here reads. Times are Unix
milliseconds by the store's clock. Payload-like values (results, progress, failure details) are
opaque bytes as well.
"""

from __future__ import annotations

from jobwire_server.domain.model.attempts import (
    DEADLINE_MISSED,
    Assignment,
    Attempt,
    CancelNotice,
    Completed,
    Completion,
    Failure,
    LeaseRef,
    Released,
    Renewal,
    RetryPolicy,
    WorkerReport,
)
from jobwire_server.domain.model.jobs import BulkProgress, Job, RecordFacts, Redrive
from jobwire_server.domain.model.output import BEGINNING, OutputPosition, Piece, Written
from jobwire_server.domain.model.queues import (
    NO_SETTINGS,
    Queue,
    QueueChanges,
    QueueSettings,
    RetryChanges,
)
from jobwire_server.domain.model.states import FailureOrigin, JobState, Outcome, WorkerStatus
from jobwire_server.domain.model.submissions import (
    Accepted,
    NewJob,
    NotNow,
    RequestId,
    Route,
    UniqueConflict,
    UniqueKey,
    UniqueScope,
)
from jobwire_server.domain.model.workers import Former, Worker, WorkerSpec

__all__ = [
    "BEGINNING",
    "DEADLINE_MISSED",
    "NO_SETTINGS",
    "Accepted",
    "Assignment",
    "Attempt",
    "BulkProgress",
    "CancelNotice",
    "Completed",
    "Completion",
    "Failure",
    "FailureOrigin",
    "Former",
    "Job",
    "JobState",
    "LeaseRef",
    "NewJob",
    "NotNow",
    "Outcome",
    "OutputPosition",
    "Piece",
    "Queue",
    "QueueChanges",
    "QueueSettings",
    "RecordFacts",
    "Redrive",
    "Released",
    "Renewal",
    "RequestId",
    "RetryChanges",
    "RetryPolicy",
    "Route",
    "UniqueConflict",
    "UniqueKey",
    "UniqueScope",
    "Worker",
    "WorkerReport",
    "WorkerSpec",
    "WorkerStatus",
    "Written",
]

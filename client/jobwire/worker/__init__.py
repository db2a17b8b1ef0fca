"""The worker: functions that run jobs."""

from __future__ import annotations

from jobwire.worker.held import WorkerStats
from jobwire.worker.logs import JobFilter
from jobwire.worker.processes import ProcessOptions
from jobwire.worker.worker import Worker

__all__ = ["JobFilter", "ProcessOptions", "Worker", "WorkerStats"]

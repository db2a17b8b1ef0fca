"""Jobs as Python values. Every time is in UTC; None means unset, as the contract defines it."""

from __future__ import annotations

from jobwire.models.attempt import Attempt, AttemptOutcome, Failure, FailureOrigin, Progress
from jobwire.models.job import Job, JobState, Redrive
from jobwire.models.new import NewJob
from jobwire.models.output import OutputChunk, OutputPosition
from jobwire.models.policies import OutputPolicy, RetryPolicy

__all__ = [
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
]

"""A job before it is submitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from jobwire._convert import Seconds
from jobwire.models.policies import OutputPolicy, RetryPolicy
from jobwire.unique import UniqueKey


# Not frozen: that would make each of them take twice the time, and many are made at once.
@dataclass(slots=True, kw_only=True)
class NewJob:
    """A job to submit; `Client.submit` describes each field."""

    operation: str
    payload: Any = None
    queue: str = "default"
    priority: int = 0
    requirements: Mapping[str, str] | None = None
    labels: Mapping[str, str] | None = None
    retry: RetryPolicy | None = None
    execution_timeout: Seconds | None = None
    run_at: datetime | None = None
    delay: Seconds | None = None
    expires_at: datetime | None = None
    output: OutputPolicy | None = None
    job_id: str | None = None
    deadline: datetime | timedelta | None = None
    unique_key: str | UniqueKey | None = None
    retention: Seconds | None = None
    request_id: str | None = None

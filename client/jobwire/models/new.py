"""A job before it is submitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from jobwire._convert import Seconds
from jobwire.models.policies import OutputPolicy, RetryPolicy
from jobwire.unique import UniqueKey


# Not frozen: that would double the time to make one, and many are made at once.
@dataclass(slots=True, kw_only=True)
class NewJob:
    """A job to submit. Moments must have a time zone; spans are seconds or a timedelta."""

    operation: str
    """The job's type, which picks the worker's handler."""
    payload: Any = None
    """The handler's input: a JSON value, bytes or a protobuf message."""
    queue: str = "default"
    """Where to put it; the first job creates the queue."""
    priority: int | None = None
    """0 to 255, higher first; None: the queue's default, 0 unless it is configured."""
    requirements: Mapping[str, str] | None = None
    """Labels that a worker must have, each with this value."""
    labels: Mapping[str, str] | None = None
    """Your own words about the job, for filters and people."""
    headers: Mapping[str, str] | None = None
    """What travels with the job for other programs, such as `traceparent` of W3C trace context;
    handlers read them from their context. At most 64 lower-case keys and 8 KiB."""
    required_features: Sequence[str] = ()
    """What a server must support to take this job (`ServerInfo.features`): one that lacks a feature
    refuses the job instead of ignoring what it does not know."""
    retry: RetryPolicy | None = None
    """How often and when to try again; None: the queue's defaults."""
    execution_timeout: Seconds | None = None
    """How long one attempt may run. 0.1 s to 30 days; None: no limit."""
    run_at: datetime | None = None
    """Do not start it before this moment."""
    delay: Seconds | None = None
    """Do not start it before this long from now. 0 to 10 years."""
    expires_at: datetime | None = None
    """Do not start it after this moment."""
    expires_after: Seconds | None = None
    """Do not start it later than this long from now; in a schedule, after its due moment. Above 0,
    at most 10 years; in place of `expires_at`."""
    output: OutputPolicy | None = None
    """How much of its output is kept; None: the server's limit, 16 MiB unless configured
    otherwise, and what is above it is refused."""
    job_id: str | None = None
    """The id to give it, `<queue>-<26 lower-case ULID characters>`; None: a new one."""
    deadline: datetime | timedelta | None = None
    """The end of the job as a whole, attempts, waits and all: a moment, or a timedelta from now, in
    a schedule from its due moment. A job that is not finished by then is FAILED with
    `DEADLINE_EXCEEDED`. At most 10 years ahead; None: none."""
    unique_key: str | UniqueKey | None = None
    """At most one job of the queue holds this key at a time. A text: until the job has ended, and
    while another job holds it, that one is answered (`existed`). For all else a `UniqueKey`."""
    retention: Seconds | None = None
    """How long the job is kept after its end. 0 to 10 years; None: as long as the queue keeps
    jobs."""
    request_id: str | None = None
    """Makes it safe to submit the same job again: for 24 hours the same id with the same content is
    answered with the same job (`existed`). Moments are content, so give spans
    of time if they are to be the same again. 1 to 64 letters, digits and `. _ : -`."""

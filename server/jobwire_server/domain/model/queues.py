"""A queue and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from jobwire_server.domain.model.attempts import RetryPolicy
from jobwire_server.domain.model.states import JobState


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What an operator chose for a queue; the defaults are those of a queue without settings."""

    event_log_entries: int = 0
    """How many changes its event log keeps; 0: it has no log."""
    max_output_bytes: int = 0
    """The most output that its jobs keep together; 0: the server's limit."""
    retry: RetryPolicy | None = None
    """Retry settings for what its jobs leave open; None: the server's defaults."""
    max_pending_jobs: int = 0
    """The most jobs that are SCHEDULED or PENDING together; 0: no limit."""
    max_live_bytes: int = 0
    """The most bytes of specs of its live jobs; 0: no limit."""
    retain_succeeded_ms: int | None = None
    """How long SUCCEEDED jobs are kept, 0 or more; None: the server's default."""
    retain_ended_ms: int | None = None
    """How long FAILED, CANCELLED and EXPIRED jobs are kept, 0 or more; None: the server's default.
    """
    max_ended_jobs: int = 0
    """The most ended jobs that are kept; 0: no limit."""
    max_ended_bytes: int = 0
    """The most bytes of specs and results of ended jobs; 0: no limit."""
    retain_output_ms: int | None = None
    """How long the output of an ended job is kept, 0 or more; None: as long as the job."""
    retain_event_log_ms: int | None = None
    """The age at which entries of the event log are dropped, 0 or more; None: no limit."""
    priority_ageing_ms: int = 0
    """The wait that counts as one priority, 100 or more; 0: no ageing."""
    default_priority: int = 0
    """The priority of jobs that name none, 0 to 255."""


NO_SETTINGS = QueueSettings()
"""The settings of a queue that nobody configured."""


class RetryChanges(TypedDict, total=False):
    """Fields of a retry policy to change, as in RetryPolicy; a missing one stays as it is."""

    max_attempts: int | None
    initial_backoff_ms: int | None
    max_backoff_ms: int | None
    multiplier: float | None
    jitter: float | None


class QueueChanges(TypedDict, total=False):
    """Settings to change, as in QueueSettings; a missing field stays as it is."""

    event_log_entries: int
    max_output_bytes: int
    retry: RetryPolicy | None
    max_pending_jobs: int
    max_live_bytes: int
    retain_succeeded_ms: int | None
    retain_ended_ms: int | None
    max_ended_jobs: int
    max_ended_bytes: int
    retain_output_ms: int | None
    retain_event_log_ms: int | None
    priority_ageing_ms: int
    default_priority: int


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue with its depths."""

    name: str
    paused: bool
    counts: Mapping[JobState, int]
    totals: Mapping[str, int]
    oldest_pending_ms: int = 0
    """When the oldest ready job became ready; 0 where there is none, or only its record says so."""
    oldest_pending_record: bytes = b""
    """The record of that job, where only that says when."""
    now_ms: int = 0
    settings: QueueSettings = NO_SETTINGS
    revision: int = 1
    """Of its settings."""
    output_bytes: int = 0
    live_bytes: int = 0
    """Of the records of its jobs that have not ended."""
    ended_bytes: int = 0
    """Of the records and results of those that have."""
    samples: tuple[tuple[int, Mapping[str, int]], ...] = ()
    """Totals at past moments, newest first."""

"""The state table: every legal step of a job.

The store's scripts check the same conditions under their own atomicity; the tests hold
both against this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from jobwire_server.domain.model import JobState

S = JobState


class Event(StrEnum):
    """What can happen to a job."""

    DUE = "due"
    CLAIM = "claim"
    PROGRESS = "progress"
    SUCCEED = "succeed"
    FAIL_RETRYABLE = "fail, attempts left"
    FAIL_FINALLY = "fail, the last attempt or not retryable"
    CRASH = "crash, budget left"
    CRASH_FINALLY = "crash, budget spent"
    RELEASE = "release"
    TIME_OUT = "execution timeout, attempts left"
    CANCEL = "cancel"
    CONFIRM_CANCEL = "confirm the cancellation"
    GRACE_OVER = "the grace of the cancellation is over"
    EXPIRE = "expires_at passed"
    REDRIVE = "redrive"
    DEADLINE = "deadline passed"


TRANSITIONS: Mapping[tuple[JobState, Event], JobState] = MappingProxyType(
    {
        (S.SCHEDULED, Event.DUE): S.PENDING,
        (S.SCHEDULED, Event.CANCEL): S.CANCELLED,
        (S.SCHEDULED, Event.EXPIRE): S.EXPIRED,
        (S.SCHEDULED, Event.DEADLINE): S.FAILED,
        (S.PENDING, Event.CLAIM): S.RUNNING,
        (S.PENDING, Event.CANCEL): S.CANCELLED,
        (S.PENDING, Event.EXPIRE): S.EXPIRED,
        (S.PENDING, Event.DEADLINE): S.FAILED,
        (S.RUNNING, Event.PROGRESS): S.RUNNING,
        (S.RUNNING, Event.SUCCEED): S.SUCCEEDED,
        (S.RUNNING, Event.FAIL_RETRYABLE): S.SCHEDULED,
        (S.RUNNING, Event.FAIL_FINALLY): S.FAILED,
        (S.RUNNING, Event.CRASH): S.PENDING,
        (S.RUNNING, Event.CRASH_FINALLY): S.FAILED,
        (S.RUNNING, Event.RELEASE): S.PENDING,
        (S.RUNNING, Event.TIME_OUT): S.SCHEDULED,
        (S.RUNNING, Event.DEADLINE): S.FAILED,
        (S.RUNNING, Event.CANCEL): S.CANCELLING,
        (S.CANCELLING, Event.PROGRESS): S.CANCELLING,
        (S.CANCELLING, Event.SUCCEED): S.SUCCEEDED,
        (S.CANCELLING, Event.FAIL_RETRYABLE): S.CANCELLED,
        (S.CANCELLING, Event.FAIL_FINALLY): S.CANCELLED,
        (S.CANCELLING, Event.CRASH): S.CANCELLED,
        (S.CANCELLING, Event.CRASH_FINALLY): S.CANCELLED,
        (S.CANCELLING, Event.RELEASE): S.CANCELLED,
        (S.CANCELLING, Event.TIME_OUT): S.CANCELLED,
        (S.CANCELLING, Event.DEADLINE): S.CANCELLED,
        (S.CANCELLING, Event.CANCEL): S.CANCELLING,
        (S.CANCELLING, Event.CONFIRM_CANCEL): S.CANCELLED,
        (S.CANCELLING, Event.GRACE_OVER): S.CANCELLED,
        (S.CANCELLED, Event.CANCEL): S.CANCELLED,
        (S.FAILED, Event.REDRIVE): S.PENDING,
        (S.CANCELLED, Event.REDRIVE): S.PENDING,
        (S.EXPIRED, Event.REDRIVE): S.PENDING,
    }
)
"""(state, event) -> state; a pair that is missing is refused and changes nothing."""

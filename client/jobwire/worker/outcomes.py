"""What a handler returned or raised, as the contract's outcomes."""

from __future__ import annotations

import math
import traceback
from datetime import timedelta
from typing import Any

from jobwire._convert import Seconds, to_duration
from jobwire._link import MAX_DETAILS_BYTES
from jobwire._stop import StopReason
from jobwire._text import cut
from jobwire.payloads import fill_payload, to_payload
from jobwire.signals import Fatal, Retry
from jobwire.v1.job_pb2 import Failure, Payload
from jobwire.v1.worker_service_pb2 import Completion

_MAX_TYPE_BYTES = 128
_MAX_MESSAGE_BYTES = 4096
_MAX_STACK_BYTES = 16 << 10
_MAX_WAIT_S = 30 * 86_400.0


class HandlerFailure(Exception):
    """A failure in its wire form, from another process.

    Args:
        failure: The failure.
        deliberate: The handler raised `Retry` or `Fatal`.
    """

    def __init__(self, failure: Failure, *, deliberate: bool = False) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.deliberate = deliberate


def success(result: Any) -> Completion | Failure:
    """Wrap a result; one that can't be sent becomes a failure that is not retried."""
    # Its outcome from the start, and the result in its place: what is put in later is copied.
    completion = Completion()
    try:
        fill_payload(completion.success.result, result)
        return completion
    except Exception as error:
        # Also what nests too deep, or a message that lacks required fields.
        return Failure(
            type="UnsupportedResult",
            message=cut(f"the handler returned what can't be sent: {error}", _MAX_MESSAGE_BYTES),
            non_retryable=True,
        )


def refused_result(message: str) -> Failure:
    """Describe a result that the broker refused; a retry would not help."""
    return Failure(
        type="InvalidResult",
        message=cut(f"the broker refused the result: {message}", _MAX_MESSAGE_BYTES),
        non_retryable=True,
    )


def without_details(refused: Failure) -> Failure:
    """Return a failure without the details, which the broker refused."""
    described = Failure()
    described.CopyFrom(refused)
    described.ClearField("details")
    return described


def failure(error: BaseException) -> Failure:
    """Describe what a handler raised."""
    if isinstance(error, HandlerFailure):
        return error.failure
    stack = "".join(traceback.format_exception(error)).encode("utf-8", "replace")
    described = Failure(
        type=cut(type(error).__name__, _MAX_TYPE_BYTES),
        message=cut(_words(error), _MAX_MESSAGE_BYTES),
        # The end names the error and the innermost calls.
        stack=stack[-_MAX_STACK_BYTES:].decode("utf-8", "ignore"),
    )
    if isinstance(error, Retry | Fatal):
        described.type = cut(str(error.type), _MAX_TYPE_BYTES)
        described.non_retryable = isinstance(error, Fatal)
        if error.details is not None:
            described.details.CopyFrom(_details(error.details))
        if isinstance(error, Retry) and error.after is not None:
            _set_wait(described, error.after)
    return described


def _words(error: BaseException) -> str:
    # A job must end whatever the exceptions of its handler do.
    try:
        return str(error)
    except Exception:
        return "the error can't be put into words: its __str__ raises"


def overran(reason: StopReason, message: str, error: BaseException) -> Failure:
    """Describe a handler that was stopped by the clock, with the broker's own failure types.

    It may be retried; the broker decides whether there is time for that.
    """
    described = failure(error)
    described.type = "DEADLINE_EXCEEDED" if reason == "deadline" else "EXECUTION_TIMEOUT"
    described.message = message
    return described


def _details(value: Any) -> Payload:
    try:
        details = _to_some_payload(value)
    except Exception as error:
        return to_payload(f"the details can't be sent: {type(error).__name__}")
    size = details.ByteSize()
    if size > MAX_DETAILS_BYTES:
        # With them the broker would refuse the failure, and the job wait for the end of its lease.
        return to_payload(f"the details are {size} bytes; at most {MAX_DETAILS_BYTES}")
    return details


def _to_some_payload(value: Any) -> Payload:
    try:
        return to_payload(value)
    except (TypeError, ValueError):
        return to_payload(repr(value))


def _set_wait(described: Failure, after: Seconds) -> None:
    """Ask for a wait within the contract's range; ignore what is no span of time."""
    try:
        wait_s = after.total_seconds() if isinstance(after, timedelta) else float(after)
    except (TypeError, ValueError):
        wait_s = math.nan
    if not math.isnan(wait_s):
        described.retry_after.CopyFrom(to_duration(min(max(0.0, wait_s), _MAX_WAIT_S)))

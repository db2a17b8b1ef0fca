"""What a handler returned or raised, as the contract's outcomes."""

from __future__ import annotations

import traceback
from typing import Any

from jobwire._convert import to_duration
from jobwire.context import StopReason, cut
from jobwire.payloads import fill_payload, to_payload
from jobwire.signals import Fatal, Retry
from jobwire.v1.job_pb2 import Failure, Payload
from jobwire.v1.worker_service_pb2 import Completion

_MAX_TYPE_BYTES = 128
_MAX_MESSAGE_BYTES = 4096
_MAX_STACK_BYTES = 16 << 10


class HandlerFailure(Exception):
    """A failure that is put into its form already, as by another process."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def success(result: Any) -> Completion | Failure:
    """Wraps a result; one that can't be carried is a failure, which a retry would repeat."""
    completion = Completion()
    try:
        fill_payload(completion.success.result, result)
        return completion
    except (TypeError, ValueError) as error:
        return Failure(
            type="UnsupportedResult",
            message=cut(f"the handler returned what can't be sent: {error}", _MAX_MESSAGE_BYTES),
            non_retryable=True,
        )


def refused_result(message: str) -> Failure:
    """Says that the broker did not take the result, which a retry would repeat."""
    return Failure(
        type="InvalidResult",
        message=cut(f"the broker refused the result: {message}", _MAX_MESSAGE_BYTES),
        non_retryable=True,
    )


def failure(error: BaseException) -> Failure:
    """Describes what a handler raised."""
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
        described.type = cut(error.type, _MAX_TYPE_BYTES)
        described.non_retryable = isinstance(error, Fatal)
        if error.details is not None:
            described.details.CopyFrom(_details(error.details))
        if isinstance(error, Retry) and error.after is not None:
            described.retry_after.CopyFrom(to_duration(error.after))
    return described


def _words(error: BaseException) -> str:
    # Whatever a handler's own exceptions do, each job gets its end.
    try:
        return str(error)
    except Exception:
        return "the error can't be put into words: its __str__ raises"


def overran(reason: StopReason, message: str, error: BaseException) -> Failure:
    """Describes a handler that was stopped by the clock, in the broker's own words for it.

    It may be retried: whether there is time for that is for the broker to say.
    """
    described = failure(error)
    described.type = "DEADLINE_EXCEEDED" if reason == "deadline" else "EXECUTION_TIMEOUT"
    described.message = message
    return described


def _details(value: Any) -> Payload:
    try:
        return to_payload(value)
    except (TypeError, ValueError):
        return to_payload(repr(value))

"""What a handler raises to say more than "it failed"."""

from __future__ import annotations

from typing import Any

from jobwire._convert import Seconds
from jobwire.errors import JobwireError


class Retry(JobwireError):
    """Fails the attempt and asks for another one no earlier than `after`.

    Args:
        message: For people; kept with the attempt.
        after: As seconds or timedelta, in place of the computed backoff. 0 to 30 days; None:
            the retry policy's backoff.
        type: The kind of failure, for programs.
        details: Anything for programs: a JSON value, bytes or a protobuf message. At most 16 KiB.
    """

    def __init__(
        self,
        message: str = "",
        *,
        after: Seconds | None = None,
        type: str = "Retry",  # noqa: A002 - the contract's word
        details: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.after = after
        self.type = type
        self.details = details


class Fatal(JobwireError):
    """Fails the job for good, even if it has attempts left.

    Args:
        message: For people; kept with the job.
        type: The kind of failure, for programs.
        details: Anything for programs: a JSON value, bytes or a protobuf message. At most 16 KiB.
    """

    def __init__(
        self,
        message: str = "",
        *,
        type: str = "Fatal",  # noqa: A002 - the contract's word
        details: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.type = type
        self.details = details


class Stopped(BaseException):
    """Raised by `Context.raise_if_cancelled`; leaves the handler.

    Not an `Exception`, like `asyncio.CancelledError`: a handler's `except Exception` must not
    swallow it.
    """

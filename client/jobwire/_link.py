"""What connects a handler's context with its worker, and what goes over it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from jobwire._stop import StopSignal
from jobwire._text import cut
from jobwire.output import OutputLog
from jobwire.payloads import to_payload
from jobwire.v1 import job_pb2

_MAX_MESSAGE_BYTES = 1024
MAX_DETAILS_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Report:
    """A progress report as the handler made it."""

    fraction: float | None
    message: str = ""
    details: Any = None

    def to_proto(self) -> job_pb2.Progress:
        """Return the wire's form.

        Raises:
            TypeError: The details have no form on the wire.
            ValueError: They have, but a larger one than the contract allows.
        """
        progress = job_pb2.Progress(
            fraction=self.fraction, message=cut(self.message, _MAX_MESSAGE_BYTES)
        )
        if self.details is not None:
            progress.details.CopyFrom(to_payload(self.details))
            size = progress.details.ByteSize()
            if size > MAX_DETAILS_BYTES:
                raise ValueError(f"the details are {size} bytes; at most {MAX_DETAILS_BYTES}")
        return progress


class Link(Protocol):
    """Connects a handler's context with the worker; each part may be called from any thread."""

    @property
    def signal(self) -> StopSignal:
        """Tell the handler to stop."""

    @property
    def ends_at(self) -> float | None:
        """When it is stopped at the latest, in Unix seconds; None: never."""

    @property
    def report(self) -> Callable[[Report], None]:
        """Take progress."""

    @property
    def open_log(self) -> Callable[[], OutputLog]:
        """Return the log of the job's output, always the same one."""

    @property
    def save(self) -> Callable[[job_pb2.Payload], Future[None]]:
        """Save a checkpoint; the future is done once the broker has it."""


@dataclass(frozen=True, slots=True)
class AssembledLink:
    """A link put together from its parts."""

    signal: StopSignal
    report: Callable[[Report], None]
    open_log: Callable[[], OutputLog]
    save: Callable[[job_pb2.Payload], Future[None]]
    ends_at: float | None = None

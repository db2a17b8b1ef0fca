"""Pieces of what jobs write out, and points in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jobwire.v1 import job_pb2


@dataclass(frozen=True, slots=True)
class OutputPosition:
    """A point in a job's output."""

    attempt: int
    """The attempt that wrote it; 0: the latest."""
    offset: int
    """The bytes of that attempt's output before the point."""


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """A piece of what a job writes out. Where one ends and the next begins means nothing."""

    attempt: int
    """The attempt that wrote it; a new one begins at offset 0."""
    offset: int
    """The bytes that the attempt wrote before it, over all channels."""
    channel: str
    data: bytes = field(repr=False)
    kind: Literal["text", "bytes"] = "text"
    """How the handler wrote it. Text may be cut within a character."""

    @property
    def text(self) -> str:
        """The content as text; a character that is cut shows as U+FFFD."""
        return self.data.decode("utf-8", "replace")

    @property
    def after(self) -> OutputPosition:
        """The point behind it, from which another watch continues."""
        return OutputPosition(self.attempt, self.offset + len(self.data))

    @classmethod
    def from_proto(cls, attempt: int, proto: job_pb2.OutputChunk) -> OutputChunk:
        """Read the wire's form."""
        channel = proto.channel or "stdout"
        if proto.WhichOneof("content") == "data":
            return cls(attempt, proto.offset, channel, proto.data, "bytes")
        return cls(attempt, proto.offset, channel, proto.text.encode())

"""What jobs write out, and points in it."""

from __future__ import annotations

from typing import NamedTuple


class Piece(NamedTuple):
    """Consecutive output on one channel."""

    channel: str
    text: bool
    """True for UTF-8, False for bytes of any kind."""
    content: bytes


class OutputPosition(NamedTuple):
    """A point in a job's output; positions compare in the order in which output is written."""

    attempt: int
    offset: int


BEGINNING = OutputPosition(0, 0)
"""Before everything that a job can write."""


class Written(NamedTuple):
    """Output that was written in one go, without a gap."""

    attempt: int
    offset: int
    """Of its first byte."""
    pieces: tuple[Piece, ...]

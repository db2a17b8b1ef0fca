"""The standard streams, whatever whoever started the server made of them.

They may be closed, lead to a reader that is gone, to a disk that is full, to a terminal that was
closed, and speak an encoding that lacks most letters. None of that is a reason not to serve.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TextIO, cast

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)
"""What is written there will never be read."""


def open_closed_streams() -> None:
    """Have the numbers 0, 1 and 2 lead to nowhere where they lead to nothing.

    Otherwise the next file or socket that is opened gets one of them, with whatever is written to
    the stream; libuv ends the process where it meets one.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
    # Python found them closed.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the end


class Lenient:
    """A text stream that takes everything and drops what can't be written.

    Args:
        stream: Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, and flush."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except UnicodeEncodeError as error:
            encoded = text.encode(error.encoding, "backslashreplace")
            self.write(encoded.decode(error.encoding))
        except (OSError, ValueError) as error:
            _drop(self._stream, error)
        return len(text)

    def flush(self) -> None:
        """Nothing is left to flush after a write."""

    def isatty(self) -> bool:
        """A terminal is at the other end."""
        try:
            return self._stream.isatty()
        except ValueError:
            return False


def lenient(stream: TextIO) -> TextIO:
    """The stream, never to fail."""
    return cast(TextIO, Lenient(stream))


def say(text: str) -> None:
    """Write a line to stdout."""
    Lenient(sys.stdout).write(f"{text}\n")


def complain(text: str) -> None:
    """Write a line to stderr."""
    Lenient(sys.stderr).write(f"{text}\n")


def let_go_of_the_rest() -> None:
    """Drop what could not be written so far: at its end Python would fail over it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _lead_nowhere(stream)


def _drop(stream: TextIO, error: Exception) -> None:
    if isinstance(error, OSError) and error.errno in _GONE:
        _lead_nowhere(stream)


def _lead_nowhere(stream: TextIO) -> None:
    """What the stream still holds goes where nothing fails."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        return  # not a file: of a test, for example
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)

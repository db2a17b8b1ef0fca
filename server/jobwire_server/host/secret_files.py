"""Secrets that are read from files, so that they stand neither in the list of processes nor in the
environment.
"""

from __future__ import annotations

import stat
from pathlib import Path

from jobwire_server.domain.units import printable

MAX_BYTES = 64 << 10


def read_secret(path: Path) -> str:
    """Return the one line of a file, without the white space around it.

    Raises:
        ValueError: What is wrong with the file, and the remedy; nothing of its content.
    """
    shown = printable(str(path))
    try:
        # Also a pipe of a shell's, which ends where its writer ends.
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(f"there is no file {shown}: mend the path") from None
    except IsADirectoryError:
        raise ValueError(f"{shown} is a directory: name the file in it") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no path has a NUL in it"
        raise ValueError(f"{shown} can't be read: {why}") from None
    if len(content) > MAX_BYTES:
        raise ValueError(f"{shown} has more than {MAX_BYTES} bytes: is it the right file?")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise ValueError(f"{shown} is not text: is it the right file?") from None
    if not text:
        raise ValueError(f"{shown} is empty: write the secret into it")
    if len(text.splitlines()) > 1 or not text.isprintable():
        raise ValueError(f"{shown} has more than one line, or characters that can't be typed")
    return text


def open_to_all(path: Path) -> str:
    """Return why a file with a secret is not safe, '' if it is."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ""
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o007:
        return ""
    shown = printable(str(path))
    return f"{shown} holds a secret, and every user of this machine may get at it: chmod o= {shown}"

"""Writes to standard output and standard error in any encoding, without control characters.

Every text goes through `shown` or `in_line`.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from typing import TextIO

import click
from rich.console import Console

from jobwire._shown import in_json as in_json
from jobwire._shown import in_line as in_line
from jobwire._shown import shown as shown

_NO_SCREEN = {"", "dumb", "unknown"}
# Drawn characters of tables and bars, each as one that every encoding has.
_PLAIN = {"…": "~", "●": "*", "•": "*", "━": "-", "╸": "-", "╺": " ", "─": "-", "│": "|"}
_DEGRADE = "jobwire.degrade"

closed_at_start: set[str] = set()
"""Which of `stdin`, `stdout` and `stderr` were closed at the start."""


def put(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text that may hold anything."""
    click.echo(shown(text), err=err, nl=nl)


def can_show(text: str) -> bool:
    """Tell whether standard output has every character of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def has_screen(stream: TextIO) -> bool:
    """Tell whether a stream goes to a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in _NO_SCREEN


def console(*, stderr: bool = False) -> Console:
    """Return a console that takes texts literally, without markup."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        # Rich would also ask the environment, and a pipe would get terminal sequences.
        force_terminal=has_screen(stream),
        markup=False,
        emoji=False,
        highlight=False,
    )


class OutputWriter:
    """Writes the output of a job: unchanged to a file or pipe, spelt out to a terminal.

    Args:
        raw: Write control characters to a terminal as well.
    """

    def __init__(self, *, raw: bool = False) -> None:
        self._raw = raw
        self._attempt = 0
        self._begun: dict[str, codecs.IncrementalDecoder] = {}
        self._held: dict[str, str] = {}

    def write(self, attempt: int, channel: str, data: bytes) -> None:
        """Write a piece: channel stdout to standard output, others to standard error."""
        stream = sys.stdout if channel == "stdout" else sys.stderr
        stream.flush()
        if self._raw or not stream.isatty():
            stream.buffer.write(data)
            stream.buffer.flush()
            return
        if attempt != self._attempt:
            self.finish()
            self._attempt = attempt
        decoder = self._begun.get(channel)
        if decoder is None:
            decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
            self._begun[channel] = decoder
        self._show(stream, channel, decoder.decode(data))

    def finish(self) -> None:
        """Write what was cut in the middle of a character and never completed."""
        begun, self._begun = self._begun, {}
        for channel, decoder in begun.items():
            stream = sys.stdout if channel == "stdout" else sys.stderr
            self._show(stream, channel, decoder.decode(b"", final=True), last=True)

    def _show(self, stream: TextIO, channel: str, text: str, *, last: bool = False) -> None:
        text = self._held.pop(channel, "") + text
        # The newline that belongs to it may come with the next piece.
        if text.endswith("\r") and not last:
            self._held[channel] = "\r"
            text = text[:-1]
        stream.write(shown(text))
        stream.flush()


def prepare() -> None:
    """Make the standard streams usable: open, and able to write every character.

    A closed one becomes /dev/null. Otherwise the next file or socket would get its number, and
    libuv ends a process that finds such a descriptor.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Those below are open, so this is the lowest number that is free.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            closed_at_start.add(name)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    codecs.register_error(_DEGRADE, _degrade)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_DEGRADE if stream.isatty() else "backslashreplace")
    _check_size()


def _degrade(error: UnicodeError) -> tuple[str, int]:
    """Spell out what an encoding lacks; line drawing becomes similar characters."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    spelt = (_PLAIN.get(one) or one.encode("unicode_escape").decode("ascii") for one in lacking)
    return "".join(spelt), error.end


def _check_size() -> None:
    """Ignore a terminal size in which nothing can be drawn."""
    for name, least in (("COLUMNS", 20), ("LINES", 5)):
        value = os.environ.get(name)
        if value is not None and not (
            re.fullmatch("[0-9]{1,5}", value, re.ASCII) and least <= int(value) <= 10_000
        ):
            del os.environ[name]


def silence_broken() -> None:
    """Discard what a stream still holds after its reader has gone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

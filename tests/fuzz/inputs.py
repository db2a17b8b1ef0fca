"""One call as it was made, and its text: what the corpus keeps."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from google.protobuf import text_encoding, text_format
from google.protobuf.message import DecodeError

from tests.fuzz.surface import Method, methods

Ending = Literal["read", "close", "cancel", "drop", "leave"]
"""What the caller does once all is said: reads to the end, closes its side, cancels, loses the
connection, or reads nothing at all until it cancels.
"""
DEFAULT_TIMEOUT_S = 10.0
_BEGIN = "--- "
_BYTES = "bytes: "
_TIMES = re.compile(r"\$\{(.+?) \* (\d+)\}", re.DOTALL)
_LONG = 20_000
"""Bytes of a frame that nobody would read field by field."""
_RUN = re.compile(r"(.{1,24}?)\1{39,}")
_RUN_OF_BYTES = re.compile(rb"(.{1,12}?)\1{39,}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Input:
    """One call."""

    method: Method
    frames: tuple[bytes, ...]
    """What is sent, in this order."""
    ending: Ending = "read"
    timeout_s: float = DEFAULT_TIMEOUT_S
    metadata: tuple[tuple[str, str | bytes], ...] = ()

    @property
    def size(self) -> int:
        """Bytes that are sent."""
        return sum(len(frame) for frame in self.frames)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the corpus: calls that belong together, the last of which is the point."""

    why: str
    inputs: tuple[Input, ...]


def to_text(entry: Entry) -> str:
    """Write an entry down."""
    lines = [f"# {line}".rstrip() for line in entry.why.splitlines()]
    for one in entry.inputs:
        options = ""
        if one.ending != "read":
            options += f" ending={one.ending}"
        if one.timeout_s != DEFAULT_TIMEOUT_S:
            options += f" timeout={one.timeout_s:g}"
        for name, value in one.metadata:
            text = value.hex() if isinstance(value, bytes) else value
            options += f" {name}={shlex.quote(text)}"
        lines.append(f"{_BEGIN}{one.method.name}{options}")
        for number, frame in enumerate(one.frames):
            if number:
                lines.append(_BEGIN.strip())
            lines.append(_frame_text(one.method, frame).rstrip())
    return "\n".join(line for line in lines if line) + "\n"


def from_text(text: str) -> Entry:
    """Read an entry.

    Raises:
        KeyError: It names a method that is gone.
        text_format.ParseError: It does not fit the contract.
    """
    head, *parts = re.split(r"^---", text, flags=re.MULTILINE)
    inputs: list[Input] = []
    known = methods()
    for part in parts:
        title, _, body = part.partition("\n")
        words = shlex.split(title)
        if not words:
            last = inputs[-1]
            frames = (*last.frames, _frame(last.method, body))
            inputs[-1] = Input(last.method, frames, last.ending, last.timeout_s, last.metadata)
            continue
        method = known[words[0]]
        options = dict(word.split("=", 1) for word in words[1:])
        ending = options.pop("ending", "read")
        assert ending in get_args(Ending), ending
        timeout_s = float(options.pop("timeout", DEFAULT_TIMEOUT_S))
        metadata = tuple(
            (name, bytes.fromhex(value) if name.endswith("-bin") else value)
            for name, value in options.items()
        )
        none = method.streams_in and not body.strip()
        frames = () if none else (_frame(method, body),)
        inputs.append(Input(method, frames, ending, timeout_s, metadata))
    why = "\n".join(line.removeprefix("#").strip() for line in head.splitlines())
    return Entry(why.strip(), tuple(inputs))


def read_corpus(folder: Path) -> dict[str, Entry]:
    """Return every entry of a folder by its name."""
    found = {}
    for path in sorted(folder.glob("*.txt")):
        try:
            found[path.stem] = from_text(path.read_text(encoding="utf-8"))
        except (KeyError, text_format.ParseError) as error:
            raise ValueError(f"{path} does not fit the contract: {error}") from error
    return found


def _frame_text(method: Method, frame: bytes) -> str:
    if len(frame) <= _LONG:
        with suppress(DecodeError, text_format.ParseError):
            message = method.request.FromString(frame)
            text = text_format.MessageToString(message, as_utf8=False)
            if text_format.Parse(text, method.request()).SerializeToString() == frame:
                return _RUN.sub(_times, text.replace("${", "\\044{"))
    plain, *parts = _RUN_OF_BYTES.split(frame)
    text = _escaped(plain)
    # The ends of the runs are found again by their lengths.
    at = len(plain)
    for run, more in zip(parts[::2], parts[1::2], strict=True):
        found = _RUN_OF_BYTES.match(frame, at)
        assert found is not None
        text += f"${{{_escaped(run)} * {len(found[0]) // len(run)}}}{_escaped(more)}"
        at = found.end() + len(more)
    return f'{_BYTES}"{text}"'


def _escaped(data: bytes) -> str:
    escaped: str = text_encoding.CEscape(data, False)
    return escaped.replace("${", "\\044{")


def _times(found: re.Match[str]) -> str:
    return f"${{{found[1]} * {len(found[0]) // len(found[1])}}}"


def _frame(method: Method, body: str) -> bytes:
    body = body.strip()
    if body.startswith(_BYTES):
        # What comes a million times is read once.
        plain, *parts = _TIMES.split(body.removeprefix(_BYTES).strip()[1:-1])
        data: bytes = text_encoding.CUnescape(plain)
        for part, times, more in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            data += text_encoding.CUnescape(part) * int(times) + text_encoding.CUnescape(more)
        return data
    body = _TIMES.sub(lambda found: found[1] * int(found[2]), body)
    message = method.request()
    # Unchecked: what the contract does not allow can be sent all the same.
    text_format.Parse(body, message)
    return message.SerializeToString()

"""Makes a failing input small: fewer frames, fewer fields, shorter lists and texts, fewer bytes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError, Message

from tests.fuzz.inputs import Input

Fails = Callable[[Input], Awaitable[bool]]
MOST_TRIES = 120
SHORT = 64
"""Bytes of a message that is looked at byte by byte too."""
MOST_PARTS = 8
"""Of a list or a map, to be looked at one by one."""


async def shrink(what: Input, fails: Fails, tries: int = MOST_TRIES) -> Input:
    """Return the smallest input found that still fails; the first must.

    Args:
        what: An input that fails.
        fails: Tells whether another does.
        tries: The most calls of it.
    """
    again = True
    while again and tries > 0:
        again = False
        for smaller in _smaller(what):
            if tries <= 0:
                break
            tries -= 1
            if await fails(smaller):
                what, again = smaller, True
                break
    return what


def _smaller(what: Input) -> Iterator[Input]:
    """Yields what is a step smaller, large steps first."""
    if what.metadata:
        yield replace(what, metadata=())
    count = len(what.frames)
    size = count // 2
    while size >= 1:
        for begin in range(count - size, -1, -size):
            frames = what.frames[:begin] + what.frames[begin + size :]
            if frames or what.method.streams_in:
                yield replace(what, frames=frames)
        size //= 2
    if what.ending not in ("read", "close"):
        yield replace(what, ending="read")
    for number in range(count - 1, -1, -1):
        for frame in _smaller_frames(what, what.frames[number]):
            yield replace(what, frames=(*what.frames[:number], frame, *what.frames[number + 1 :]))


def _smaller_frames(what: Input, frame: bytes) -> Iterator[bytes]:
    try:
        message = what.method.request.FromString(frame)
    except DecodeError:
        yield from _smaller_bytes(frame)
        return
    # Equal messages differ in the order of their maps.
    if len(message.SerializeToString()) < len(frame):
        yield message.SerializeToString()
        yield from _smaller_bytes(frame)
    for smaller in _smaller_messages(message):
        yield smaller.SerializeToString()
    # What it holds besides its fields.
    if len(frame) <= SHORT:
        yield from _smaller_bytes(frame)


def _smaller_bytes(data: bytes) -> Iterator[bytes]:
    size = len(data) // 2
    while size >= 1:
        for begin in range(0, len(data), size):
            yield data[:begin] + data[begin + size :]
        size //= 2


def _smaller_messages(message: Any) -> Iterator[Message]:
    for field, value in message.ListFields():
        name = field.name
        yield _with(message, partial(_clear, name))
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in [*value][:MOST_PARTS]:
                yield _with(message, partial(_drop_key, name, key))
        elif field.is_repeated:
            for begin, size in _pieces(len(value)):
                yield _with(message, partial(_drop_piece, name, begin, size))
            if field.message_type is not None:
                for at, inner in enumerate(value[:MOST_PARTS]):
                    for less in _smaller_messages(inner):
                        yield _with(message, partial(_put_at, name, at, less))
        elif field.message_type is not None:
            for less in _smaller_messages(value):
                yield _with(message, partial(_put, name, less))
        elif isinstance(value, str | bytes) and len(value) > MOST_PARTS:
            for part in (value[: len(value) // 2], value[len(value) // 2 :], value[:-1]):
                yield _with(message, partial(_set, name, part))


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    """Begins and sizes of what to leave out of a list; of small pieces only the first and last."""
    size = count // 2
    while size >= 1:
        for begin in {0, count - size} if count > MOST_PARTS else range(0, count, size):
            yield begin, size
        size //= 2


def _with(message: Message, change: Callable[[Any], object]) -> Message:
    copy = message.__class__()
    copy.CopyFrom(message)
    change(copy)
    return copy


def _clear(name: str, message: Any) -> None:
    message.ClearField(name)


def _drop_key(name: str, key: Any, message: Any) -> None:
    del getattr(message, name)[key]


def _drop_piece(name: str, begin: int, size: int, message: Any) -> None:
    del getattr(message, name)[begin : begin + size]


def _put(name: str, inner: Message, message: Any) -> None:
    getattr(message, name).CopyFrom(inner)


def _put_at(name: str, at: int, inner: Message, message: Any) -> None:
    getattr(message, name)[at].CopyFrom(inner)


def _set(name: str, value: Any, message: Any) -> None:
    setattr(message, name, value)

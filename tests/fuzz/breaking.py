"""Bytes that are no message, or another one: cut, flipped, doubled, grown."""

from __future__ import annotations

import random
from collections.abc import Callable

Break = Callable[[random.Random, bytes], bytes]


def _noise(rng: random.Random, data: bytes) -> bytes:
    return rng.randbytes(rng.choice((1, 3, 20, 300)))


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _without_begin(rng: random.Random, data: bytes) -> bytes:
    return data[rng.randrange(len(data) + 1) :]


def _flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data or b"\n")
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _twice(rng: random.Random, data: bytes) -> bytes:
    return data + data


def _with_a_piece_twice(rng: random.Random, data: bytes) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[begin:]


def _with_an_unknown_field(rng: random.Random, data: bytes) -> bytes:
    number = rng.choice((90, 150, 999, 2**20, 2**29 - 1))
    kind = rng.choice((0, 1, 2, 5))
    body = {0: b"\x07", 1: bytes(8), 2: b"\x03abc", 5: bytes(4)}[kind]
    return data + _varint(number << 3 | kind) + body


def _with_another_kind(rng: random.Random, data: bytes) -> bytes:
    """A field that exists, in a wire form that it does not have; in a oneof, one member more."""
    number, kind = rng.randint(1, 16), rng.choice((0, 1, 2, 3, 4, 5))
    body = {0: b"\xff" * 9 + b"\x01", 1: bytes(8), 2: b"\0", 3: b"", 4: b"", 5: bytes(4)}[kind]
    return data + _varint(number << 3 | kind) + body


def _with_a_long_length(rng: random.Random, data: bytes) -> bytes:
    return data + _varint(rng.randint(1, 16) << 3 | 2) + _varint(rng.choice((100, 2**31, 2**63)))


def _with_text_that_is_none(rng: random.Random, data: bytes) -> bytes:
    """Half a character, or one of UTF-16 alone, in a place where text may be."""
    bad = rng.choice((b"\xed\xa0\x80", b"\xff", b"\xc0\x80", b"\xf4\x90\x80\x80"))
    return data + _varint(rng.randint(1, 16) << 3 | 2) + _varint(len(bad)) + bad


def _nested(rng: random.Random, data: bytes) -> bytes:
    number = _varint(rng.randint(1, 16) << 3 | 2)
    for _ in range(rng.choice((3, 60, 150))):
        data = number + _varint(len(data)) + data
        if len(data) > 200_000:
            break
    return data


BREAKS: tuple[Break, ...] = (
    _noise,
    _cut,
    _without_begin,
    _flipped,
    _twice,
    _with_a_piece_twice,
    _with_an_unknown_field,
    _with_another_kind,
    _with_a_long_length,
    _with_text_that_is_none,
    _nested,
)


def break_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return something like a message's bytes that is not quite it."""
    return rng.choice(BREAKS)(rng, data)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

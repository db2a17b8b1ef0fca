"""JSON text as every reader can take it: checked once at the door, and never parsed again."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import accumulate, islice

import msgspec
from pydantic_core import from_json

MAX_LEVELS = 200
MAX_DIGITS = 4_000

# It looks at the whole text and makes nothing of it: a megabyte takes some milliseconds, where
# reading it into half a million lists takes a tenth of a second.
_LOOK = msgspec.json.Decoder(msgspec.Raw).decode
# Digits alike and no plus: what may be too large is then found as fast as a text is copied.
_ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
_LARGE_EXPONENT = b"0e000"
_LONG = b"0" * 200
_STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_NUMBERS_ALONE = bytes(at if chr(at) in "0123456789.eE+-" else ord(" ") for at in range(256))
_LONGEST = 308
"""Digits of a number that is below 1.8e308 in any case."""
# A level more, a level less, as signed bytes.
_LEVELS = bytes.maketrans(b"[{]}", b"\1\1\xff\xff")
_NO_BRACKETS = bytes(at for at in range(256) if chr(at) not in "[]{}")
_POSITION = re.compile(r"(?:JSON is malformed: )?(.*?)(?: \(byte (\d+)\))?$", re.DOTALL)


def check_json(text: str) -> None:
    """Find fault with a text that is not JSON, or has a number that no double can hold.

    RFC 8259 has no limit for numbers, but most readers turn such a one into infinity, which they
    then can't write. Integers below it are kept digit by digit, whatever readers with doubles make
    of those above 2^53. The last of two equal keys counts, as everywhere. Nesting goes 200 levels
    deep, and half of a surrogate pair is no character.

    Raises:
        ValueError: With the line and the column, and the remedy.
    """
    try:
        _LOOK(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"is not JSON: {_explained(text, str(error))}") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if len(text) > 2 * MAX_LEVELS and _too_deep(text):
        raise ValueError(_TOO_DEEP)
    alike = text.encode().translate(_ALIKE, b"+")
    # A number is beyond a double only with an exponent of three digits, or with 200 in a row.
    long = len(alike) >= len(_LONG) and _LONG in alike
    if long or _LARGE_EXPONENT in alike:
        _check_numbers(text, long)


_TOO_DEEP = f"is not JSON that every reader takes: it has more than {MAX_LEVELS} levels"


def _explained(text: str, error: str) -> str:
    """Return what is wrong with a text, by line and column."""
    found = _POSITION.match(error)
    assert found is not None
    what, at = found[1], found[2]
    if at is None:
        return f"{what[:1].lower()}{what[1:]} at its end, {_place(text, len(text))}"
    return f"{what} at {_place(text, len(text.encode()[: int(at)].decode(errors='ignore')))}"


def _place(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    return f"line {line} column {at - text.rfind(chr(10), 0, at)}"


def _too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_LEVELS:
        return False
    bare = _STRINGS.sub("", text) if '"' in text else text
    brackets = bare.encode().translate(_LEVELS, _NO_BRACKETS)
    # Without what is empty one level at most is gone, and mostly nearly all of it.
    fewer = brackets.replace(b"\1\xff", b"")
    return _levels(fewer) + 1 > MAX_LEVELS and _levels(brackets) > MAX_LEVELS


def _levels(brackets: bytes) -> int:
    return max(accumulate(memoryview(brackets).cast("b")), default=0)


def _check_numbers(text: str, long: bool) -> None:
    bare = _STRINGS.sub("", text) if '"' in text else text
    bare = bare.replace("true", "").replace("false", "")
    numbers = bare.encode().translate(_NUMBERS_ALONE).split()
    # All at once, for there may be a hundred thousand, by a reader of JSON that is quicker at it
    # than `float`. Of long ones there are few, and neither likes those of many thousand digits.
    if long and any(len(number) > MAX_DIGITS for number in numbers):
        raise ValueError(f"holds a number of more than {MAX_DIGITS} digits: send it as a string")
    short = [number for number in numbers if len(number) <= _LONGEST] if long else numbers
    values = from_json(b"[" + b",".join(short) + b"]", cache_strings=False)
    wrong = [short[values.index(bad)] for bad in (math.inf, -math.inf) if bad in values]
    if long:
        digits = (number for number in numbers if len(number) > _LONGEST)
        wrong += islice((number for number in digits if math.isinf(float(number))), 1)
    if wrong:
        raise ValueError(_beyond(text, [number.decode().lstrip("-") for number in wrong]))


def _beyond(text: str, numbers: Sequence[str]) -> str:
    """Return what is wrong with the first of some numbers in a text."""
    any_of = "|".join(re.escape(number) for number in numbers)
    tokens = re.compile(rf"{_STRINGS.pattern}|(?<![0-9.eE+])({any_of})(?![0-9.eE+-])")
    at, number = next((found.start(), found[1]) for found in tokens.finditer(text) if found[1])
    shown = number if len(number) <= 20 else f"{number[:20]}…"
    return (
        f"holds the number {shown} at {_place(text, at)}, which is beyond what a double holds"
        " (1.8e308): send it as a string"
    )

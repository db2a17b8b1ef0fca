"""JSON text as every reader can take it: checked once at the door, and never parsed again."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Sequence
from itertools import islice

from pydantic_core import from_json

# Digits alike and no plus: what may be too large is then found as fast as a text is copied.
_ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
_LARGE_EXPONENT = b"0e000"
_LONG = b"0" * 200
_STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_NUMBERS_ALONE = bytes(at if chr(at) in "0123456789.eE+-" else ord(" ") for at in range(256))
_LONGEST = 308
"""Digits of a number that is below 1.8e308 in any case."""
_LARGE_TEXT = 16 << 10


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
        # The values are thrown away.
        if len(text) < _LARGE_TEXT:
            from_json(text, allow_inf_nan=False, cache_strings=False)
        else:
            _read_without_collector(text)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    alike = text.encode().translate(_ALIKE, b"+")
    # A number is beyond a double only with an exponent of three digits, or with 200 in a row.
    long = len(alike) >= len(_LONG) and _LONG in alike
    if long or _LARGE_EXPONENT in alike:
        _check_numbers(text, long)


def _read_without_collector(text: str) -> None:
    """Read a text that may make half a million lists, which the collector would go through again
    and again, and which are all gone at the end.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        from_json(text, allow_inf_nan=False, cache_strings=False)
    finally:
        if collecting:
            gc.enable()


def _check_numbers(text: str, long: bool) -> None:
    bare = _STRINGS.sub("", text) if '"' in text else text
    bare = bare.replace("true", "").replace("false", "")
    numbers = bare.encode().translate(_NUMBERS_ALONE).split()
    # All at once, for there may be a hundred thousand, and by the reader of JSON, which is quicker
    # at it than `float`. Integers come back as such, however long.
    values = from_json(b"[" + b",".join(numbers) + b"]", cache_strings=False)
    wrong = [numbers[values.index(bad)] for bad in (math.inf, -math.inf) if bad in values]
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
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    shown = number if len(number) <= 20 else f"{number[:20]}…"
    return (
        f"holds the number {shown} at line {line} column {column}, which is beyond what a"
        " double holds (1.8e308): send it as a string"
    )

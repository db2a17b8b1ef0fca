"""JSON text as every reader can take it: checked once at the door, and never parsed again."""

from __future__ import annotations

import math
import re

from pydantic_core import from_json

# Digits alike and no plus: what may be too large is then found as fast as a text is copied.
_ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
_LARGE_EXPONENT = b"0e000"
_LONG = b"0" * 200
_STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_NUMBERS = re.compile(r"[0-9][0-9.eE+-]*+")
_TOKENS = re.compile(f"{_STRINGS.pattern}|{_NUMBERS.pattern}")


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
        from_json(text, allow_inf_nan=False, cache_strings=False)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    alike = text.encode().translate(_ALIKE, b"+")
    # A number is beyond a double only with an exponent of three digits, or with 200 in a row.
    if _LARGE_EXPONENT in alike or (len(alike) >= len(_LONG) and _LONG in alike):
        _check_numbers(text)


def _check_numbers(text: str) -> None:
    # All at once, for there may be a hundred thousand; which one is wrong is asked only then.
    if math.inf not in map(float, _NUMBERS.findall(_STRINGS.sub("", text))):
        return
    for found in _TOKENS.finditer(text):
        token = found[0]
        if token[0] != '"' and math.isinf(float(token)):
            line = text.count("\n", 0, found.start()) + 1
            column = found.start() - text.rfind("\n", 0, found.start())
            number = token if len(token) <= 20 else f"{token[:20]}…"
            raise ValueError(
                f"holds the number {number} at line {line} column {column}, which is beyond what a"
                " double holds (1.8e308): send it as a string"
            )

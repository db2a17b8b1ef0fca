"""JSON text as every reader can take it: checked once at the door, and never parsed again."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from itertools import accumulate
from operator import add

import msgspec
from pydantic_core import from_json

MAX_LEVELS = 200
MAX_DIGITS = 4_000

# It looks at the whole text and makes nothing of it: a megabyte takes some milliseconds, where
# reading it into half a million lists takes a tenth of a second. For the same reason whatever
# follows goes over the text as a whole, with what Python does in C: a text may have 350,000
# strings, brackets or numbers, and to make an object of each takes as long.
_LOOK = msgspec.json.Decoder(msgspec.Raw).decode
# Digits alike and no plus: what may be too large is then found as fast as a text is copied.
_ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
_LARGE_EXPONENT = b"0e000"
_LONG = b"0" * 200
_IN_NUMBERS = b"0123456789.eE+-"
_NUMBERS = bytes.maketrans(b":", b",")
_NO_NUMBERS = bytes(at for at in range(256) if at not in _IN_NUMBERS + b":,")
_ALL_DIGITS = bytes.maketrans(_IN_NUMBERS, b"0" * len(_IN_NUMBERS))
_LONGEST = 308
"""Digits of a number that is below 1.8e308 in any case."""
_QUOTES = bytes(ord("1") if at == ord('"') else ord("0") for at in range(256))
_KEPT = bytes.maketrans(b"01", b"\xff\0")
_OPENS = bytes.maketrans(b"[{]}", b"1100")
_NO_BRACKETS = bytes(at for at in range(256) if at not in b"[]{}")
_POSITION = re.compile(r"(?:JSON is malformed: )?(.*?)(?: \(byte (\d+)\))?$", re.DOTALL)


def _levels_of(eight: int) -> tuple[int, int]:
    """Return how far eight brackets go up together, and how far at most on the way."""
    ways = [1 if eight >> bit & 1 else -1 for bit in range(7, -1, -1)]
    return sum(ways), max(0, *accumulate(ways))


_UP = bytes(_levels_of(eight)[0] % 256 for eight in range(256))
_PEAKS = bytes(_levels_of(eight)[1] for eight in range(256))


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
    data = text.encode()
    # A number is beyond a double only with an exponent of three digits, or with 200 in a row.
    alike = data.translate(_ALIKE, b"+")
    may_be_beyond = _LARGE_EXPONENT in alike
    may_be_deep = False
    if len(data) >= len(_LONG):
        may_be_beyond = may_be_beyond or _LONG in alike
        may_be_deep = data.count(b"[") + data.count(b"{") > MAX_LEVELS
    if may_be_beyond or may_be_deep:
        bare = _without_strings(data)
        if may_be_deep and _levels(bare) > MAX_LEVELS:
            raise ValueError(_TOO_DEEP)
        if may_be_beyond:
            _check_numbers(text, bare)


_TOO_DEEP = f"is not JSON that every reader takes: it has more than {MAX_LEVELS} levels"


def _explained(text: str, error: str) -> str:
    """Return what is wrong with a text, by line and column."""
    found = _POSITION.match(error)
    assert found is not None
    what, at = found[1], found[2]
    if at is None:
        return f"{what[:1].lower()}{what[1:]} at its end, {_place(text, len(text))}"
    return f"{what} at {_place_of_byte(text, int(at))}"


def _place_of_byte(text: str, at: int) -> str:
    return _place(text, len(text.encode()[:at].decode(errors="ignore")))


def _place(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    return f"line {line} column {at - text.rfind(chr(10), 0, at)}"


def _without_strings(data: bytes) -> bytes:
    """Return JSON with zeros for strings, but for their last quotes; all else stays in its place.

    It takes as long for a few long strings as for very many short ones.
    """
    if b'"' not in data:
        return data
    if b'\\"' in data:
        data = data.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    size = len(data)
    # A bit for each byte. A byte is inside when it has an odd number of quotes before it, or is one
    # of them itself: each bit becomes the exclusive or of all before it, twice as many each time.
    inside = int(data.translate(_QUOTES), 2)
    by = 1
    while by < size:
        inside ^= inside >> by
        by *= 2
    kept = f"{inside:0{size}b}".encode().translate(_KEPT)
    bare = int.from_bytes(data, "big") & int.from_bytes(kept, "big")
    return bare.to_bytes(size, "big")


def _levels(bare: bytes) -> int:
    """Return how deep JSON without its strings is."""
    brackets = bare.translate(_OPENS, _NO_BRACKETS)
    if not brackets:  # they all stand in a string
        return 0
    # Eight in a byte, for which it is known where they lead. What fills up the first one goes down.
    fill = -len(brackets) % 8
    packed = int(brackets, 2).to_bytes((len(brackets) + fill) // 8, "big")
    ways: memoryview[int] = memoryview(packed.translate(_UP)).cast("b")
    deepest: int = max(map(add, accumulate(ways, initial=fill), packed.translate(_PEAKS)))
    return deepest


def _check_numbers(text: str, bare: bytes) -> None:
    # What is neither a number nor stands between two goes, and the commas around it become one.
    numbers = bare.replace(b"true", b"") if b"r" in bare else bare
    numbers = numbers.replace(b"false", b"") if b"s" in numbers else numbers
    numbers = numbers.translate(_NUMBERS, _NO_NUMBERS)
    while b",," in numbers:
        numbers = numbers.replace(b",,", b",")
    numbers = numbers.strip(b",")
    alike = numbers.translate(_ALIKE, b"+")
    has_long = _LONG in alike
    if not (has_long or _LARGE_EXPONENT in alike):
        return
    # All at once, for there may be a hundred thousand, by a reader of JSON that is quicker at it
    # than `float`. Of long ones there are few, and it does not like those.
    long: list[bytes] = []
    if has_long:
        numbers, long = _apart(numbers)
    values = from_json(b"[" + numbers + b"]", cache_strings=False)
    found = []
    for bad in (math.inf, -math.inf):
        with suppress(ValueError):
            found.append(_entry(numbers, values.index(bad), len(values)))
    found += [number for number in long if math.isinf(float(number))][:1]
    if found:
        raise ValueError(_beyond(text, bare, found))


def _apart(numbers: bytes) -> tuple[bytes, list[bytes]]:
    """Return numbers with zeros for those longer than `_LONGEST`, and the latter."""
    digits = numbers.translate(_ALL_DIGITS)
    if b"0" * (MAX_DIGITS + 1) in digits:
        raise ValueError(f"holds a number of more than {MAX_DIGITS} digits: send it as a string")
    others, long, done = [], [], 0
    while (at := digits.find(b"0" * (_LONGEST + 1), done)) >= 0:
        end = digits.find(b",", at)
        end = len(digits) if end < 0 else end
        others.append(numbers[done:at])
        long.append(numbers[at:end])
        done = end
    return b"0".join([*others, numbers[done:]]), long


def _entry(numbers: bytes, at: int, size: int) -> bytes:
    """Return one of so many numbers, counted from the end that is nearer."""
    if at <= size // 2:
        return numbers.split(b",", at + 1)[at]
    return numbers.rsplit(b",", size - at)[1]


def _beyond(text: str, bare: bytes, numbers: list[bytes]) -> str:
    """Return what is wrong with the first of some numbers in a text."""
    at, first = min((_number_at(bare, number), number) for number in numbers)
    number = first.decode().lstrip("-")
    at += len(first) - len(number)
    shown = number if len(number) <= 20 else f"{number[:20]}…"
    return (
        f"holds the number {shown} at {_place_of_byte(text, at)}, which is beyond what a double"
        " holds (1.8e308): send it as a string"
    )


def _number_at(bare: bytes, number: bytes) -> int:
    """Return where a number stands first, not counting parts of other numbers."""
    bare = b" " + bare + b" "
    at = bare.find(number)
    while bare[at - 1] in _IN_NUMBERS or bare[at + len(number)] in _IN_NUMBERS:
        at = bare.find(number, at + 1)
    return at - 1

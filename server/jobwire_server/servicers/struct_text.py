"""A `google.protobuf.Struct` as the JSON text that it stands for."""

from __future__ import annotations

from json.encoder import encode_basestring
from math import isfinite
from typing import Any

from google.protobuf.struct_pb2 import Struct

MAX_VALUES = 10_000
"""Of one structure, which is turned into text value by value; JSON text has no such bound."""
MAX_LEVELS = 100
_SHORTEST_EXPONENT = 1e21
"""Integral numbers from here on are written with an exponent, as JavaScript does."""


class StructError(ValueError):
    """A structure that has no JSON text, or too long a way to it.

    Args:
        path: Where in the structure, '' for all of it.
        text: What is wrong, and the remedy.
    """

    def __init__(self, path: str, text: str) -> None:
        super().__init__(text)
        self.path = path


def struct_text(struct: Struct) -> str:
    """Return the JSON text, in the order of the keys, so that one content has one text.

    Integral numbers have no fraction: readers with integers take them as such.

    Raises:
        StructError: It holds NaN or infinity, or more than the bounds allow.
    """
    return _Writer().object_of(struct.fields, 1)


class _Writer:
    def __init__(self) -> None:
        self._left = MAX_VALUES

    def object_of(self, fields: Any, level: int) -> str:
        self._enter(len(fields), level)
        parts = []
        for key in sorted(fields):
            try:
                text = self._text(fields[key], level)
            except StructError as error:
                raise StructError(f".fields[{key[:80]!r}]{error.path}", str(error)) from None
            parts.append(f"{encode_basestring(key)}: {text}")
        return "{" + ", ".join(parts) + "}"

    def _list_of(self, values: Any, level: int) -> str:
        self._enter(len(values), level)
        parts = []
        for at, value in enumerate(values):
            try:
                parts.append(self._text(value, level))
            except StructError as error:
                raise StructError(f".values[{at}]{error.path}", str(error)) from None
        return "[" + ", ".join(parts) + "]"

    def _enter(self, count: int, level: int) -> None:
        self._left -= count
        if self._left < 0:
            raise StructError(
                "", f"has more than {MAX_VALUES} values: send the content as `json` text"
            )
        if level > MAX_LEVELS:
            raise StructError("", f"has more than {MAX_LEVELS} levels")

    def _text(self, value: Any, level: int) -> str:
        kind = value.WhichOneof("kind")
        if kind == "string_value":
            return encode_basestring(value.string_value)
        if kind == "number_value":
            return _number(value.number_value)
        if kind == "struct_value":
            return self.object_of(value.struct_value.fields, level + 1)
        if kind == "list_value":
            return self._list_of(value.list_value.values, level + 1)
        if kind == "bool_value":
            return "true" if value.bool_value else "false"
        return "null"


def _number(number: float) -> str:
    if not isfinite(number):
        raise StructError("", "is a number that JSON can't carry: NaN or infinite")
    if number.is_integer() and abs(number) < _SHORTEST_EXPONENT:
        return str(int(number))
    return repr(number)

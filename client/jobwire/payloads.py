"""Python values to payloads and back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar, overload

from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from jobwire.v1.job_pb2 import Payload

__all__ = ["Json", "Payload", "UnknownPayload", "from_payload", "to_payload"]

M = TypeVar("M", bound=Message)

_HUGE = re.compile("[0-9]{309}")
_BEYOND = 2**1024 - 2**970
"""The least integer that rounds to infinity as a double."""


class Json:
    """JSON text that is sent as it is, wherever a value can stand: as a payload, result,
    checkpoint, or details.

        client.submit("order.ship", Json('{"id": 7}'))

    A `str` by itself is a JSON string, with quotes around it. The broker checks the text.

    Args:
        text: The text, or its UTF-8.

    Raises:
        TypeError: It is neither text nor bytes.
        ValueError: It is not UTF-8, or holds half of a surrogate pair.
    """

    __slots__ = ("text",)

    def __init__(self, text: str | bytes | bytearray) -> None:
        if not isinstance(text, str | bytes | bytearray):
            raise TypeError(f"Json takes JSON text, not a {type(text).__name__}: give that itself")
        try:
            self.text: str = text if isinstance(text, str) else text.decode()
            if not self.text.isascii():
                self.text.encode()
        except UnicodeError as error:
            raise ValueError(f"the JSON text is not UTF-8: {error}"[:200]) from None

    def __repr__(self) -> str:
        return f"Json({self.text!r})" if len(self.text) <= 80 else f"Json({self.text[:80]!r}…)"

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Json) else NotImplemented

    def __hash__(self) -> int:
        return hash((Json, self.text))


class UnknownPayload(ValueError):
    """A payload is of a kind that only later releases can read."""

    def __init__(
        self,
        message: str = "the payload is of a kind that this release of jobwire does not know: use a"
        " newer one",
    ) -> None:
        super().__init__(message)


def to_payload(value: Any, *, metadata: Mapping[str, bytes] | None = None) -> Payload:
    """Wrap a value for the wire.

    Args:
        value: None becomes the empty payload; a dict, list, tuple, str, int, float or bool
            becomes compact JSON; a `Json` is JSON text already; bytes stay bytes; a protobuf
            `Struct` is carried as a structure and any other message packed as `Any`; a `Payload`
            is used as it is.
        metadata: What programs need to read it, a codec or a content type: at most 16 keys and 4
            KiB. The result goes wherever a value does.

    Raises:
        TypeError: The value, or something inside it, has no JSON form.
        ValueError: A number is NaN, infinite, or too large for a double (1.8e308), a text holds
            half of a surrogate pair, or a container holds itself. The message says where.
    """
    if isinstance(value, Payload) and not metadata:
        return value
    payload = Payload()
    fill_payload(payload, value)
    for key, entry in (metadata or {}).items():
        payload.metadata[key] = entry
    return payload


def fill_payload(payload: Payload, value: Any) -> None:
    """Put a value into an empty payload that is part of another message.

    Filling it in place saves a copy.

    Raises:
        TypeError, ValueError: As for `to_payload`.
    """
    match value:
        case bytes() | bytearray() | memoryview():
            payload.data = bytes(value)
        case None:
            payload.SetInParent()
        case Payload():
            payload.CopyFrom(value)
        case Json():
            payload.json = value.text
        case struct_pb2.Struct():
            payload.struct.CopyFrom(value)
        case Message():
            payload.message.Pack(value)
        case dict() | list() | tuple() | str() | int() | float():
            payload.json = _json(value)
        case _:
            raise TypeError(
                f"a {type(value).__name__} can't be a payload: give a JSON value, bytes or a"
                " protobuf message"
            )


def _json(value: Any) -> str:
    """Return compact JSON."""
    try:
        text = _encode(value)
        # Halves of surrogate pairs are in the text as they are.
        if not text.isascii():
            text.encode()
    except ValueError as error:
        raise ValueError(_unfit(value, "", set()) or str(error)) from error
    # Python's integers have no bound; those that a double can't hold have 309 digits.
    if len(text) > 308 and _HUGE.search(text) and (found := _unfit(value, "", set())):
        raise ValueError(found)
    return text


def _refuse(value: Any) -> Any:
    if isinstance(value, Json):
        raise TypeError("a Json is a whole value: put json.loads(text) into another one instead")
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


# Made once: json.dumps makes an encoder for each call that differs from its defaults.
_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_refuse
).encode


def _unfit(value: Any, path: str, inside: set[int]) -> str:
    """Return what JSON can't carry, and where it is; empty if nothing is found."""
    where = f" at {path}" if path else ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value} is no JSON number{where}: leave it out"
    if isinstance(value, int):
        return "" if abs(value) < _BEYOND else f"an integer{where} is too large: send a string"
    if isinstance(value, str):
        fits = not any("\ud800" <= one <= "\udfff" for one in value)
        return "" if fits else f"a text{where} holds half of a surrogate pair"
    if id(value) in inside or not isinstance(value, dict | list | tuple):
        return ""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        place = f"{path}[{key!r}]"
        if isinstance(value, dict) and (found := _unfit(key, f"the key {place}", inside)):
            return found
        if found := _unfit(entry, place, inside | {id(value)}):
            return found
    return ""


@overload
def from_payload(payload: Payload) -> Any: ...
@overload
def from_payload(payload: Payload, message_type: type[M]) -> M: ...
def from_payload(payload: Payload, message_type: type[M] | None = None) -> Any:
    """Unwrap a payload.

    Args:
        payload: From the wire. An empty one gives None, JSON the parsed value, data bytes, a
            structure a dict, and a message the `Any` that carries it.
        message_type: The protobuf class to unpack an `Any` to, or to read JSON as.

    Raises:
        TypeError: `message_type` is given and the payload holds something else.
        UnknownPayload: It is of a kind that only later releases can read.
    """
    kind = payload.WhichOneof("kind")
    if kind is None and len(UnknownFieldSet(payload)):
        raise UnknownPayload
    if message_type is not None:
        return _message_from(payload, kind, message_type)
    if kind == "json":
        return json.loads(payload.json)
    if kind == "data":
        return payload.data
    if kind == "message":
        return payload.message
    if kind == "struct":
        return json_format.MessageToDict(payload.struct)
    return None


def _message_from(payload: Payload, kind: str | None, message_type: type[M]) -> M:
    message = message_type()
    wanted = message.DESCRIPTOR.full_name
    if kind == "message":
        if payload.message.Unpack(message):
            return message
        raise TypeError(f"the payload holds {payload.message.TypeName()}, not {wanted}")
    if kind == "json" or kind == "struct":
        text = payload.json if kind == "json" else json_format.MessageToJson(payload.struct)
        try:
            return json_format.Parse(text, message)
        except json_format.ParseError as error:
            raise TypeError(f"the payload is not the JSON form of {wanted}: {error}") from error
    if kind == "data":
        raise TypeError(f"the payload holds bytes, not {wanted}")
    return message

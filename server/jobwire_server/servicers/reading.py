"""Reading requests: bytes become a message only if it holds no more than requests may.

What a message costs is decided by how many parts it has: sixteen megabytes may be one payload, or
eight million empty jobs, which take a second and half a gigabyte before anybody could refuse them.
So the parts of a large message are counted on the wire first, up to their bounds and no further.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from jobwire_server.domain.errors import InvalidRequest, Violation

LOOK_FROM_BYTES = 512 << 10
"""A smaller message is read in 40 ms at most, whatever it holds, and mostly in much less."""
LOOK_INTO_BYTES = 2 << 10
"""Within a large message: smaller parts are not looked into."""
MAX_PARTS = 50_000
"""Of a whole message. Jobs of the largest batch have some thirty each."""
MAX_REPEATED = 1_000
"""Entries of a list that is not in BOUNDS."""
MAX_MAP = 64
MAX_STRUCT_BYTES = 1 << 20
MAX_STRUCTS_BYTES = 2 << 20
"""Of a whole message. A megabyte may hold half a million values, and takes up to 35 ms to read."""
MAX_TIMES = 16
"""How often a field that is no list may be said; the last one counts, or all of them together."""
BOUNDS = {
    "jobwire.v1.SubmitJobsRequest.requests": 1_000,
    "jobwire.v1.HeartbeatRequest.leases": 10_000,
    "jobwire.v1.Attach.leases": 10_000,
    "jobwire.v1.WorkRequest.acks": 10_000,
    "jobwire.v1.WorkerSpec.queues": 64,
    "jobwire.v1.WorkerSpec.operations": 512,
    "jobwire.v1.ClaimJobRequest.queues": 64,
    "jobwire.v1.Report.output": 256,
    "jobwire.v1.UpdateProgressRequest.output": 256,
}
"""The most entries of lists, as the contract says them."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_WHATEVER = 1 << 40
_NOT_PACKED = (
    FieldDescriptor.TYPE_STRING,
    FieldDescriptor.TYPE_BYTES,
    FieldDescriptor.TYPE_MESSAGE,
)

UNREADABLE = "can't be read as the method's message; generate the stubs anew from the contract"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a request that is not handed on."""

    error: InvalidRequest


Reader: TypeAlias = Callable[[bytes], Any]


def unreadable(field: str = "request", text: str = UNREADABLE) -> InvalidRequest:
    """Return the refusal of bytes that are no message of the method."""
    return InvalidRequest([Violation(field, text)])


def marking(parse: Reader | None) -> Reader:
    """Return a reader that hands on what can't be read as `Unreadable`.

    gRPC ends a call whose reader raises with UNKNOWN, and a traceback in the log.

    Args:
        parse: `FromString` of the method's message; None: it takes bytes.
    """
    parse, shape = parse or bytes, _shape_read_by(parse)

    def read(data: bytes) -> Any:
        try:
            if len(data) > LOOK_FROM_BYTES:
                _Look(data).at(shape, 0, len(data), "")
            return parse(data)
        except (DecodeError, ValueError):
            return Unreadable(unreadable())
        except InvalidRequest as error:
            # Without its traceback, which holds the bytes.
            return Unreadable(error.with_traceback(None))

    return read


def raising(parse: Reader | None) -> Reader:
    """Return a reader for streams, which raises InvalidRequest to whoever reads them."""
    parse, shape = parse or bytes, _shape_read_by(parse)

    def read(data: bytes) -> Any:
        try:
            if len(data) > LOOK_FROM_BYTES:
                _Look(data).at(shape, 0, len(data), "")
            return parse(data)
        except (DecodeError, ValueError) as error:
            raise unreadable() from error

    return read


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    most: int
    most_bytes: int
    too_long: str
    message: Descriptor | None
    """To be looked into."""
    is_struct: bool


_Shape: TypeAlias = dict[int, _Field]


def _shape_read_by(parse: Reader | None) -> _Shape:
    descriptor = getattr(getattr(parse, "__self__", None), "DESCRIPTOR", None)
    return _shape(descriptor) if descriptor is not None else {}


@cache
def _shape(message: Descriptor) -> _Shape:
    return {field.number: _field(field) for field in message.fields}


def _field(field: FieldDescriptor) -> _Field:
    kind = field.message_type
    most, most_bytes, too_long = MAX_TIMES, _WHATEVER, ""
    is_struct = kind is not None and kind.full_name == "google.protobuf.Struct"
    if kind is not None and kind.GetOptions().map_entry:
        most = MAX_MAP
    elif field.is_repeated:
        most = BOUNDS.get(field.full_name, MAX_REPEATED)
        if field.type not in _NOT_PACKED:
            # Numbers may stand end to end in one part, each of at most ten bytes.
            most_bytes, too_long = 10 * most, f"may hold at most {most} entries"
    elif is_struct:
        most_bytes = MAX_STRUCT_BYTES
        too_long = f"may have at most {MAX_STRUCT_BYTES} bytes; send the content as JSON text"
    ours = kind is not None and kind.full_name.startswith("jobwire.")
    return _Field(field.name, most, most_bytes, too_long, kind if ours else None, is_struct)


class _Look:
    """Counts the parts of a message. Raises InvalidRequest with the field that has too many."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._parts = 0
        self._struct_bytes = 0

    def at(self, shape: _Shape, at: int, end: int, path: str) -> None:
        data, counts = self._data, dict.fromkeys(shape, 0)
        while at < end:
            self._parts += 1
            if self._parts > MAX_PARTS:
                text = f"may hold at most {MAX_PARTS} parts, fields and entries together"
                raise unreadable("request", text)
            tag = data[at]
            at += 1
            if tag > 127:
                tag, at = self._varint(tag & 127, at, end)
            wire, length = tag & 7, 0
            if wire in (_LENGTH, _VARINT):
                length = data[at] if at < end else 0
                at += 1
                if length > 127:
                    length, at = self._varint(length & 127, at, end)
                if wire == _VARINT:
                    length = 0
            elif wire == _FIXED64:
                length = 8
            elif wire == _FIXED32:
                length = 4
            else:
                raise unreadable()
            number = tag >> 3
            if number in counts:
                counts[number] += 1
                field = shape[number]
                if counts[number] > field.most:
                    raise unreadable(
                        f"{path}{field.name}", f"may hold at most {field.most} entries"
                    )
                if length > LOOK_INTO_BYTES and wire == _LENGTH:
                    if length > field.most_bytes:
                        raise unreadable(f"{path}{field.name}", field.too_long)
                    if field.is_struct:
                        self._count_struct(length, f"{path}{field.name}")
                    if field.message is not None:
                        self.at(
                            _shape(field.message),
                            at,
                            min(at + length, end),
                            f"{path}{field.name}.",
                        )
            at += length

    def _count_struct(self, length: int, path: str) -> None:
        self._struct_bytes += length
        if self._struct_bytes > MAX_STRUCTS_BYTES:
            text = (
                f"may have at most {MAX_STRUCTS_BYTES} bytes together with the other structures of"
                " the message; send the content as JSON text"
            )
            raise unreadable(path, text)

    def _varint(self, value: int, at: int, end: int) -> tuple[int, int]:
        """Return a number whose first 7 bits are known, and where it ends."""
        shift = 7
        while at < end and shift < 70:
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7
        raise unreadable()

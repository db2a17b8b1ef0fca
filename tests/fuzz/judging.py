"""What no answer may be, whatever was asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import StatusCode

from jobwire.v1 import errors_pb2

from tests.fuzz.calling import Outcome
from tests.fuzz.inputs import Input
from tests.fuzz.learnt import fields_below
from tests.fuzz.surface import Method

MOST_BYTES = 4 << 20
"""What a client takes as its library comes."""
NEVER = (StatusCode.INTERNAL, StatusCode.UNKNOWN)
_NEVER = tuple(code.value[0] for code in NEVER)
_OF_THE_CALLER = (StatusCode.OK, StatusCode.CANCELLED, StatusCode.DEADLINE_EXCEEDED)
"""What the caller's own library says, perhaps beside what the server has just said."""
_OF_TRANSPORT = (
    StatusCode.CANCELLED,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.UNAVAILABLE,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.UNIMPLEMENTED,
)
"""Statuses that may come from where nobody knows of details."""
_REASONS = frozenset(errors_pb2.ErrorReason.keys())
_LATEST_S, _LONGEST_S = 253_402_300_799, 315_576_000_000
_TIMES = ("google.protobuf.Timestamp", "google.protobuf.Duration")
_MOST_NANOS = 999_999_999
_SLOW_S = 5.0
_MAY_WAIT = ("wait",)


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that must not be."""

    kind: str
    method: str
    text: str
    input: Input | None = None

    @property
    def signature(self) -> tuple[str, str, str]:
        """The same for what probably has the same cause."""
        return self.kind, self.method, "".join(c for c in self.text if not c.isdigit())[:60]


def judge(what: Input, outcome: Outcome) -> list[Failure]:
    """Return what is wrong with the outcome of a call."""
    found = [(kind, text) for answer in outcome.answers for kind, text in _answer(what, answer)]
    if outcome.hangs:
        found.append(("hang", "the stream does not end after its caller closed it"))
    if not outcome.gone:
        found += _status(what.method, outcome)
        late = outcome.code is StatusCode.DEADLINE_EXCEEDED and what.timeout_s >= _SLOW_S
        if late and not what.method.streams_out and not _asks_to_wait(what):
            found.append(("hang", f"no answer within {what.timeout_s:g} s"))
    return [Failure(kind, what.method.name, text, what) for kind, text in found]


def _asks_to_wait(what: Input) -> bool:
    try:
        message = what.method.request.FromString(what.frames[0])
    except DecodeError:
        return False
    return any(field.name in _MAY_WAIT for _, field, _ in fields_below(message))


def _answer(what: Input, answer: bytes) -> list[tuple[str, str]]:
    if len(answer) > MOST_BYTES:
        return [("large", f"an answer of {len(answer)} bytes")]
    try:
        message: Any = what.method.answer.FromString(answer)
    except DecodeError as error:
        return [("unreadable", f"an answer that is no {what.method.answer.__name__}: {error}")]
    found = []
    for inside, field, value in fields_below(message):
        if field.name == "code" and inside.DESCRIPTOR.name == "ItemError" and value in _NEVER:
            found.append(("status", f"an item's code is {value}: {inside.message}"))
        if field.name == "nanos":
            kind = inside.DESCRIPTOR.full_name
            least = 0 if kind == "google.protobuf.Timestamp" else -_MOST_NANOS
            if kind in _TIMES and not least <= value <= _MOST_NANOS:
                found.append(("unreadable", f"an answer with {value} ns in a {kind}"))
        if field.name == "seconds":
            kind = inside.DESCRIPTOR.full_name
            if kind == "google.protobuf.Timestamp" and not -62_135_596_800 <= value <= _LATEST_S:
                found.append(("unreadable", f"an answer with a moment of {value} s"))
            if kind == "google.protobuf.Duration" and abs(value) > _LONGEST_S:
                found.append(("unreadable", f"an answer with a duration of {value} s"))
    return found


def _status(method: Method, outcome: Outcome) -> list[tuple[str, str]]:
    if outcome.code in NEVER:
        return [("status", f"{outcome.code.name}: {outcome.message}")]
    packed = dict(outcome.trailers).get("grpc-status-details-bin")
    if outcome.code in _OF_THE_CALLER or not method.own:
        return []
    if packed is None:
        if outcome.code in _OF_TRANSPORT:
            return []
        return [("details", f"{outcome.code.name} without details: {outcome.message}")]
    try:
        return _details(packed, outcome)
    except DecodeError as error:
        return [("details", f"details of {outcome.code.name} that are none: {error}")]


def _details(packed: Any, outcome: Outcome) -> list[tuple[str, str]]:
    status = status_pb2.Status.FromString(packed)
    if (status.code, status.message) != (outcome.code.value[0], outcome.message):
        return [("details", f"{outcome.code.name} with details of {status.code}")]
    reasons = []
    for each in status.details:
        message = getattr(error_details_pb2, each.type_url.rpartition(".")[2])()
        message.ParseFromString(each.value)
        if isinstance(message, error_details_pb2.ErrorInfo):
            reasons.append(message.reason)
    known = [f"ERROR_REASON_{reason}" in _REASONS for reason in reasons]
    if known != [True]:
        return [("details", f"{outcome.code.name} with reasons {reasons}")]
    return []

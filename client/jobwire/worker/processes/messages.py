"""The messages between a worker and the process of a handler.

A message is a kind and its content; protobuf messages go serialized.

To the process: `run` (handler pickled, assignment, when it ends), `stop` (reason, message), `full`
(of output), `saved` (number, refusal), `end`.

From it: `ready`, `unfit` (words: it can't run handlers), `report`, `output`, `checkpoint` (number,
payload), `log` (attributes of a record, pickled), `ended` (the fields of an `Ended`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Message: TypeAlias = tuple[str, Any]
EndKind: TypeAlias = Literal["success", "failure", "deliberate", "stopped"]
"""How a handler ended; deliberate: by `Retry` or `Fatal`."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a handler."""

    kind: EndKind
    content: bytes | str
    """A `Completion`, a `Failure`, or the words of whoever stopped it."""
    left: tuple[str, ...]
    """The processes that it left running, as `NAME (PID)`."""
    memory_bytes: int
    """The memory that the process holds."""

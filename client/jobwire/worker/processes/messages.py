"""The messages between a worker and the process of a handler.

A message is a kind and its content; protobuf messages go serialized.

To the process: `run` (handler pickled, assignment, when it ends), `stop` (reason, message), `full`
(of output), `saved` (number, refusal), `end`.

From it: `ready`, `unfit` (words: it can't run handlers), `report`, `output`, `checkpoint` (number,
payload), `log` (attributes of a record, pickled), `ended` (the fields of an `ProcessOutcome`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Message: TypeAlias = tuple[str, Any]
OutcomeKind: TypeAlias = Literal["success", "failure", "deliberate", "stopped"]
"""How a handler ended; deliberate: by `Retry` or `Fatal`."""


@dataclass(frozen=True, slots=True)
class ProcessOutcome:
    """What became of a handler and of its process."""

    kind: OutcomeKind
    content: bytes | str
    """A `Completion`, a `Failure`, or the words of whoever stopped it."""
    left: tuple[str, ...]
    """The processes that it left running, as `NAME (PID)`."""
    memory_bytes: int
    """The memory that the process holds."""

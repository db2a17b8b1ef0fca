"""What jobs of a run ask for, drawn from a seed; pure."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

QUEUES = ("faults-a", "faults-b")
MODES = ("thread", "async", "process")
KINDS = {"noop": 40, "slow": 34, "fail": 12, "fatal": 3, "over": 3, "block": 1}
"""Weights of what handlers do. `slow` writes output and saves checkpoints, `fail` does so after
some failures, `over` outlives its execution timeout once, `block` holds its loop."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One job, as a producer asks for it; times in seconds from the call."""

    queue: str
    mode: str
    kind: str
    rows: int = 0
    """Pieces of output, with a checkpoint after every third."""
    row_ms: int = 0
    fails: int = 0
    priority: int = 0
    delay_s: float = 0.0
    expires_s: float = 0.0
    deadline_s: float = 0.0
    timeout_s: float = 0.0
    max_attempts: int = 0
    unique_key: str = ""

    @property
    def operation(self) -> str:
        """Which handler takes it; the mode `nobody` has none."""
        return f"faults.{self.mode}"

    @property
    def payload(self) -> dict[str, Any]:
        """What its handler is told."""
        return {"kind": self.kind, "rows": self.rows, "row_ms": self.row_ms, "fails": self.fails}

    def facts(self) -> dict[str, Any]:
        """What of it a history says: what is not as always."""
        return {name: value for name, value in asdict(self).items() if value}


def draw(rng: random.Random, *, block_ms: int = 1_000) -> Wish:
    """Draws a job.

    Args:
        rng: Decides everything.
        block_ms: The longest that a handler holds its loop.
    """
    queue = rng.choice(QUEUES)
    kind = rng.choices([*KINDS], weights=[*KINDS.values()])[0]
    mode = rng.choices(MODES, weights=(5, 5, 2))[0]
    if kind == "block":
        return Wish(queue, "async", "block", row_ms=rng.randrange(100, block_ms))
    if rng.random() < 0.03:
        # No worker takes it: it ends by its time, or because somebody cancels it.
        end_s = round(rng.uniform(0.5, 6.0), 1)
        if rng.random() < 0.5:
            return Wish(queue, "nobody", "noop", expires_s=end_s)
        return Wish(queue, "nobody", "noop", deadline_s=end_s)
    given: dict[str, Any] = {"priority": rng.choice((0, 0, 0, 0, 5, 9))}
    if kind in ("slow", "fail"):
        given |= {"rows": rng.randrange(1, 12), "row_ms": rng.choice((5, 20, 20, 60, 150))}
    if kind == "fail":
        given |= {"fails": rng.randrange(1, 4), "max_attempts": rng.choice((2, 3, 50))}
    if kind == "over":
        given |= {"timeout_s": 1.0, "max_attempts": 50}
    if rng.random() < 0.1:
        given["delay_s"] = round(rng.uniform(0.1, 1.9), 1)
    chance = rng.random()
    if chance < 0.05:
        given["deadline_s"] = round(rng.uniform(2.0, 12.0), 1)
    elif chance < 0.1:
        given["expires_s"] = round(rng.uniform(2.0, 12.0), 1)
    if rng.random() < 0.08:
        given["unique_key"] = f"key-{rng.randrange(8)}"
    return Wish(queue, mode, kind, **given)


def row(job_id: str, attempt: int, number: int) -> str:
    """The piece of output with this number that an attempt writes; no two are alike."""
    return f"{job_id}/{attempt}/{number}{'.' * (number % 7)}\n"

"""What a benchmark is: a name, a size, and a function that measures and checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.stores import Engine


class WrongResult(Exception):
    """A job is missing, doubled or unfinished: speed does not count then."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much a benchmark does."""

    jobs: int
    """Jobs of one round, or of the backlog; each benchmark says which."""
    rounds: int
    """How often each side of a comparison is measured, by turns."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of a benchmark."""

    size: Size
    engine: Engine
    say: Callable[[str], None]
    """Tells people how far it is; not part of the answer."""
    profiles: Path | None = None
    """Where profiles of the processes go; None: nothing is profiled. Some benchmarks do it."""
    backlog: int = 0
    """How many jobs wait meanwhile, on one side of the comparison that `run_backlog` makes."""

    def profile(self, part: str) -> Path | None:
        """Returns the file for the profile of a part; None where nothing is profiled."""
        return self.profiles and self.profiles / f"{part}.prof"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark that can be named on the command line."""

    name: str
    summary: str
    run: Callable[[Plan], Awaitable[list[Figure]]]
    """Starts what it needs, measures, checks that the jobs are right, and cleans up.

    Raises WrongResult.
    """
    full: Size
    short: Size
    """For the set that is done in a few minutes."""
    engine: Engine = "valkey"
    """The store it runs on unless told otherwise."""
    in_short: bool = True
    """Whether the short set has it."""
    run_backlog: Callable[[Plan], Awaitable[list[Figure]]] | None = None
    """Measures the same with a backlog and without; None where there is no such comparison."""


def check(holds: bool, what: str) -> None:
    """Raises WrongResult with the words unless the condition holds."""
    if not holds:
        raise WrongResult(what)

"""Figures: what a benchmark found, how it is summed up and printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median, quantiles
from typing import Any, Literal, NamedTuple


class Spread(NamedTuple):
    """The same thing measured in several rounds: the median, and the middle half of them."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is to reach: its ratio if it has one, else its value."""

    relation: Literal["at least", "at most"]
    bound: float

    def met_by(self, value: float) -> bool:
        """True if the value is on the right side of the bound."""
        return value >= self.bound if self.relation == "at least" else value <= self.bound


@dataclass(frozen=True, slots=True)
class Ratio:
    """A value divided by that of something else, measured in the same run."""

    of: Spread
    against: str
    """What it was divided by, in words."""
    base: float
    """The other's value, in the figure's unit."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a benchmark's answer."""

    name: str
    value: Spread
    unit: str
    ratio: Ratio | None = None
    goal: Goal | None = None
    note: str = ""
    """What else to know of it, in words."""

    def aiming_at(self, goal: Goal) -> Figure:
        """Returns the figure with a goal."""
        return replace(self, goal=goal)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if self.goal is None:
            return None
        return self.goal.met_by(self.ratio.of.median if self.ratio else self.value.median)

    def as_json(self) -> dict[str, Any]:
        """Returns the figure as plain values."""
        return {
            "name": self.name,
            "value": self.value._asdict(),
            "unit": self.unit,
            "ratio": self.ratio
            and {
                **self.ratio.of._asdict(),
                "against": self.ratio.against,
                "base": self.ratio.base,
            },
            "goal": self.goal and {**asdict(self.goal), "met": self.met},
            "note": self.note,
        }


def spread(values: Sequence[float]) -> Spread:
    """Returns the median and the quartiles of one or more rounds.

    Not the extremes: the more rounds, the further out those lie, whatever is measured.
    """
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def measured(name: str, values: Sequence[float], unit: str, *, goal: Goal | None = None) -> Figure:
    """Returns the figure of what was measured in each round."""
    return Figure(name, spread(values), unit, goal=goal)


def compared(
    name: str,
    values: Sequence[float],
    unit: str,
    *,
    against: str,
    base: Sequence[float],
    goal: Goal | None = None,
    note: str = "",
) -> Figure:
    """Returns the figure of a comparison.

    The ratio is taken within each round, whose two halves were measured next to each other, so
    that whatever else the machine did fell on both.

    Args:
        name: Of the figure.
        values: One for each round.
        unit: Of values and base.
        against: What the base is, in words.
        base: One for each round, in the same order.
        goal: For the ratio.
        note: What else to know, in words.
    """
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    ratio = Ratio(spread(ratios), against, median(base))
    return Figure(name, spread(values), unit, ratio, goal, note)


def quantile(values: Sequence[float], fraction: float) -> float:
    """Returns the value below which the fraction of the values lies, without interpolation."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * fraction), len(ordered) - 1)]


def line(figure: Figure) -> str:
    """Returns a figure as a line for people."""
    text = f"{figure.name:<32} {_number(figure.value.median):>10} {figure.unit}"
    if figure.value.low != figure.value.high:
        text += f"  ({_number(figure.value.low)} to {_number(figure.value.high)})"
    if figure.ratio is not None:
        of = figure.ratio.of
        text += (
            f"  {of.median:.2f} of {figure.ratio.against} at {_number(figure.ratio.base)}"
            f"  ({of.low:.2f} to {of.high:.2f})"
        )
    if figure.goal is not None:
        verdict = "met" if figure.met else "MISSED"
        text += f"  goal {figure.goal.relation} {figure.goal.bound:g}: {verdict}"
    if figure.note:
        text += f"  ({figure.note})"
    return text


def _number(value: float) -> str:
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"

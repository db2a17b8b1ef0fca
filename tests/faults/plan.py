"""Which fault comes when, for how long, and to whom: fixed by a seed; pure."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WHATS = ("kill", "stop", "term", "cut", "deaf", "slow", "full", "failover")

CLIENT_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Fault:
    """Something bad that happens to one participant.

    Args:
        number: Counts on.
        at_s: When it begins, in seconds from the start.
        what: One of WHATS.
        target: The participant's name.
        for_s: How long it lasts: until what was killed is started again, what was stopped goes
            on, a link is mended.
    """

    number: int
    at_s: float
    what: str
    target: str
    for_s: float

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.at_s + self.for_s


@dataclass(frozen=True, slots=True)
class Pace:
    """How often what happens, in seconds from one to the next on average, and for how long."""

    kill_s: float = 4.2
    stop_s: float = 4.2
    term_s: float = 15.0
    link_s: float = 14.0
    full_s: float = 60.0
    failover_s: float = 40.0
    longest_stop_s: float = 60.0
    longest_down_s: float = 6.0
    longest_link_s: float = 40.0
    calm_s: float = 1.5
    """Between the end of one fault and the next of the same participant."""


QUICK = Pace(
    kill_s=1.6,
    stop_s=2.5,
    term_s=5.0,
    link_s=4.0,
    full_s=15.0,
    failover_s=15.0,
    longest_stop_s=5.0,
    longest_down_s=1.0,
    longest_link_s=4.0,
)


def draw(
    seed: int, seconds: float, targets: Mapping[str, Sequence[str]], pace: Pace
) -> list[Fault]:
    """Draws the faults of a run.

    Args:
        seed: The same one gives the same faults.
        seconds: How long the run is; every fault ends before.
        targets: What can happen -> to whom.
        pace: How often.
    """
    rng = random.Random(seed)
    means = {
        "kill": pace.kill_s,
        "stop": pace.stop_s,
        "term": pace.term_s,
        "cut": pace.link_s * 3,
        "deaf": pace.link_s * 1.5,
        "slow": pace.link_s * 3,
        "full": pace.full_s,
        "failover": pace.failover_s,
    }
    moments = sorted(
        (at_s, what)
        for what in WHATS
        if targets.get(what)
        for at_s in _moments(rng, seconds, means[what])
    )
    busy_until: dict[str, float] = {}
    found: list[Fault] = []
    for at_s, what in moments:
        for_s = min(_length(rng, what, pace), seconds - at_s)
        free = [name for name in targets[what] if busy_until.get(name, 0.0) <= at_s]
        if not free:
            # Rather somebody a little later than nobody.
            name = min(targets[what], key=lambda each: busy_until[each])
            at_s = busy_until[name]
            if at_s + for_s > seconds:
                continue
            free = [name]
        # A client that is away asks for nothing, and then nothing can go wrong.
        weights = [CLIENT_WEIGHT if "client" in each else 1.0 for each in sorted(free)]
        (name,) = rng.choices(sorted(free), weights)
        busy_until[name] = at_s + for_s + pace.calm_s
        found.append(Fault(0, round(at_s, 2), what, name, round(for_s, 2)))
    found.sort(key=lambda fault: fault.at_s)
    return [
        Fault(number, fault.at_s, fault.what, fault.target, fault.for_s)
        for number, fault in enumerate(found, 1)
    ]


def _moments(rng: random.Random, seconds: float, mean_s: float) -> list[float]:
    found: list[float] = []
    at_s = rng.uniform(0, mean_s)
    while at_s < seconds:
        found.append(at_s)
        at_s += rng.uniform(0.4, 1.6) * mean_s
    return found


def _length(rng: random.Random, what: str, pace: Pace) -> float:
    if what == "stop":
        # As many between 1 and 2 seconds as between 30 and 60.
        return math.exp(rng.uniform(0.0, math.log(pace.longest_stop_s)))
    if what in ("kill", "term"):
        return rng.choice((0.0, rng.uniform(0.0, 1.0), rng.uniform(0.0, pace.longest_down_s)))
    if what == "failover":
        return 0.0
    return math.exp(rng.uniform(0.0, math.log(pace.longest_link_s)))

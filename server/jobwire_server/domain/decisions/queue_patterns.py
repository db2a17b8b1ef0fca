"""Patterns of queues: a name in which `*` stands for any number of characters, also none."""

from __future__ import annotations

ANY = "*"
MAX_ANY = 4
"""How often it may stand in a pattern."""


def is_pattern(text: str) -> bool:
    """True for a pattern, False for a plain name."""
    return ANY in text


def prefix_of(pattern: str) -> str:
    """Return what each name begins with that a pattern fits."""
    return pattern.partition(ANY)[0]


def fits(pattern: str, name: str) -> bool:
    """Return whether a pattern fits a name; looks at each character a few times at most."""
    first, *middle = pattern.split(ANY)
    if not middle:
        return pattern == name
    last = middle.pop()
    if len(name) < len(first) + len(last):
        return False
    if not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        # The first place that there is leaves the most for what follows.
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True

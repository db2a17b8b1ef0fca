"""Tests build parts and look at what is public; where one reaches in, it says why."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST = 20
OWNERS = {"self", "cls"}
PUBLIC = {"_replace", "_asdict", "_make", "_fields", "_field_defaults", "_exit"}
"""Of named tuples and of `os`, whatever their names look like."""

REASON = re.compile(r"# (?!type:|noqa)")


def _reaches_in(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in PUBLIC
        and not (isinstance(node.value, ast.Name) and node.value.id in OWNERS)
    )


def _found() -> Iterator[tuple[str, list[str]]]:
    """Yield each place in the tests, with the lines before it."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        places = {node.lineno for node in ast.walk(ast.parse(text)) if _reaches_in(node)}  # type: ignore[attr-defined]
        for at in sorted(places):
            yield f"{path.relative_to(ROOT)}:{at}", lines[max(0, at - 4) : at]


def test_few_tests_reach_into_privates_and_each_says_why() -> None:
    places = dict(_found())
    assert len(places) < MOST, "\n".join(places)
    silent = [place for place, lines in places.items() if not any(map(REASON.search, lines))]
    assert not silent, "\n".join(silent)

"""The promises that the documentation makes are held by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| ([^|]*) \| ([^|]+) \| `(tests/[^`]+)::([^`]+)` \|$", re.MULTILINE)
PROMISES = [
    (promise, path, name)
    for _, promise, path, name in ROW.findall((ROOT / "docs" / "promises.md").read_text())
]


@pytest.mark.parametrize(("promise", "path", "name"), PROMISES)
def test_a_promise_is_held_by_a_test(promise: str, path: str, name: str) -> None:
    text = (ROOT / path).read_text()
    assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{promise}: {path}::{name}"


def test_every_row_of_the_table_is_read() -> None:
    table = (ROOT / "docs" / "promises.md").read_text().split("## In Python")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(PROMISES) == len(rows) - 2 > 50


def test_what_a_promise_names_is_a_test_by_its_name() -> None:
    assert all(name.startswith("test_") for _, _, name in PROMISES)

"""Each unusual construction of the hot path does what the plain way does, and the page about them
names what is there. What each saves depends on the machine and on how Python was built: the
benchmark tells that.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.hot_path import PAYS, Pair, compare, compare_loops, pairs

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "hot-path.md").read_text()
PAIRS = pairs()
SMALL = (300, 2)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
async def test_both_ways_come_to_the_same_end(pair: Pair) -> None:
    figure = await compare(pair, *SMALL)
    assert (figure.name, figure.goal) == (pair.name, PAYS)


def test_the_event_loops_are_compared() -> None:
    assert compare_loops(*SMALL).goal == PAYS


@pytest.mark.parametrize("name", [*(pair.name for pair in PAIRS), "a turn of uvloop"])
def test_the_page_has_the_figure_of_each(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize(
    "named", sorted(set(re.findall(r"`((?:server|client|tests)/[^`]+)`", PAGE)))
)
def test_what_the_page_names_is_there(named: str) -> None:
    path, _, name = named.partition("::")
    text = (ROOT / path).read_text()
    for part in name.split(".") if name else ():
        assert re.search(rf"\b{part}\b", text), named

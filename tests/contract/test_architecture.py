"""The files, functions and classes that docs/architecture.md names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "server" / "jobwire_server"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.(?:py|lua))(?:::(\w+))?`", PAGE)))
ROOMS = re.findall(r"^\| `(\w+)/` \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("path", "function"), NAMED)
def test_what_the_page_names_is_there(path: str, function: str) -> None:
    file = SERVER / path
    assert file.is_file(), f"docs/architecture.md names {path}, which does not exist"
    if function:
        text = file.read_text(encoding="utf-8")
        begins = rf"^((async )?def|class) {function}\b"
        assert re.search(begins, text, re.MULTILINE), f"{path}::{function}"


def test_the_page_has_every_room_of_the_server() -> None:
    there = {folder.name for folder in SERVER.iterdir() if (folder / "__init__.py").is_file()}
    assert len(ROOMS) == len(set(ROOMS))
    assert set(ROOMS) == there


def test_the_walks_are_read() -> None:
    walks = PAGE.split("\n## Walks\n")[1].split("\n## ")[0]
    assert walks.count("\n### ") >= 4
    assert len(NAMED) > 10

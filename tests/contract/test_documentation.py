"""Links between the pages lead somewhere, and the index of docs/ has every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *DOCS.rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)


FILES = [
    str(file.relative_to(ROOT))
    for folder in ("benchmarks", "client", "examples", "protos", "server", "tests", "tools")
    for file in (ROOT / folder).rglob("*.*")
    if file.suffix in (".py", ".lua", ".proto", ".go")
]


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} does not exist"
        if anchor:
            assert anchor in anchors(target), f"{link} has no such heading"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.parent != ROOT or page.name == "CONTRIBUTING.md"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    for path in re.findall(r"`([\w/]+\.(?:py|lua|proto|go))(?:::\w+)?`", prose(page)):
        assert any(f"/{file}".endswith(f"/{path}") for file in FILES), f"{path} does not exist"


def test_the_index_has_every_page_once() -> None:
    links = re.findall(r"^\| \[[^\]]+\]\(([\w./-]+)\) \|", (DOCS / "README.md").read_text(), re.M)
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    assert sorted(link for link in links if "/" not in link) == sorted(pages)


def test_the_index_says_of_each_page_which_question_it_answers() -> None:
    rows = re.findall(r"^\| \[.*\) \| (.*) \|$", (DOCS / "README.md").read_text(), re.MULTILINE)
    assert len(rows) > 15
    assert all(row.endswith("?") for row in rows)

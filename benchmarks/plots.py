"""Pictures of results: `python -m benchmarks.plots RESULTS.json… [--into DIR]`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from xml.sax.saxutils import escape

import click

ROOT = Path(__file__).resolve().parents[1]
LONGEST, EDGE = 320, 16
LETTER = 7.2
"""The widest that most fonts make a letter of the names and words."""
ROW, BAR, TOP, BOTTOM = 30, 18, 58, 34
# Legible on a white page and on a dark one, and for those who see no green.
OURS, OTHERS, MISSED, TEXT, FAINT = "#2f81f7", "#8b949e", "#d4760a", "#6e7781", "#8c959f"
FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of a picture."""

    name: str
    length: float
    words: str
    """What stands at its end."""
    colour: str


def draw(title: str, note: str, bars: Sequence[Bar], line_at: float | None = None) -> str:
    """Returns a picture with a bar a line, as SVG.

    Args:
        title: Above it.
        note: Below it.
        bars: From top to bottom.
        line_at: Where a line crosses all bars; None: nowhere.
    """
    height = TOP + ROW * len(bars) + BOTTOM
    left = EDGE + round(LETTER * max(len(bar.name) for bar in bars)) + 10
    whole = left + LONGEST + 8 + round(LETTER * max(len(bar.words) for bar in bars)) + EDGE
    longest = max([*(bar.length for bar in bars), line_at or 0.0]) or 1.0
    scale = LONGEST / longest
    crossing = (line_at or 0.0) * scale
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{whole}' height='{height}'"
        f" viewBox='0 0 {whole} {height}' role='img' aria-label='{_quoted(title)}' {FONT}>",
        _text(EDGE, 28, title, size=17, colour=TEXT, weight=600),
    ]
    for at, bar in enumerate(bars):
        y = TOP + ROW * at
        middle = y + BAR / 2 + 4.5
        width = max(1.0, bar.length * scale)
        parts += (
            _text(left - 10, middle, bar.name, size=13, colour=TEXT, anchor="end"),
            f"<rect x='{left}' y='{y}' width='{width:.1f}' height='{BAR}' rx='3'"
            f" fill='{bar.colour}'/>",
            # Beside the line, where there is one, and not across it.
            _text(left + max(width, crossing) + 8, middle, bar.words, size=13, colour=TEXT),
        )
    if line_at is not None:
        x = left + crossing
        bottom = TOP + ROW * len(bars) - (ROW - BAR) + 6
        parts.append(
            f"<line x1='{x:.1f}' y1='{TOP - 8}' x2='{x:.1f}' y2='{bottom}' stroke='{FAINT}'"
            " stroke-width='1.5' stroke-dasharray='4 3'/>"
        )
    parts += (_text(EDGE, height - 12, note, size=12, colour=FAINT), "</svg>")
    return "\n".join(parts) + "\n"


def peers(document: dict[str, Any]) -> str | None:
    """Draws the jobs a second of each system; None where they were not measured."""
    benchmark = _benchmark(document, "peers")
    if benchmark is None:
        return None
    ours = median(figure["value"]["median"] for figure in benchmark["figures"])
    rates = [(f["ratio"]["against"], f["ratio"]["base"]) for f in benchmark["figures"]]
    ordered = sorted([("Jobwire", ours), *rates], key=lambda entry: -entry[1])
    bars = [
        Bar(name, rate, f"{rate:,.0f}", OURS if name == "Jobwire" else OTHERS)
        for name, rate in ordered
    ]
    note = (
        f"{benchmark['jobs']:,} jobs that do nothing, 256 bytes each, results kept;"
        f" {_machine(document)}"
    )
    return draw("Jobs a second, from submission to stored result", note, bars)


def goals(document: dict[str, Any]) -> str | None:
    """Draws how far beyond its goal each figure is; None where nothing has a goal."""
    bars = [
        _goal_bar(benchmark["name"], figure)
        for benchmark in document["benchmarks"]
        for figure in benchmark["figures"]
        if figure["goal"]
    ]
    if not bars:
        return None
    title = "Figures and their goals (dashed line; longer is better)"
    return draw(title, _machine(document), bars, line_at=1.0)


def _goal_bar(benchmark: str, figure: dict[str, Any]) -> Bar:
    goal = figure["goal"]
    value = (figure["ratio"] or figure["value"])["median"]
    least = goal["relation"] == "at least"
    share = value / goal["bound"] if least else goal["bound"] / max(value, 1e-9)
    sign = "≥" if least else "≤"
    unit = "" if figure["ratio"] else f" {figure['unit']}"
    return Bar(
        f"{benchmark}: {figure['name'].strip()}",
        min(share, 3.0),  # what is far beyond would make the others too small to be seen
        f"{value:.3g}{unit} ({sign} {goal['bound']:g})",
        OURS if goal["met"] else MISSED,
    )


def _benchmark(document: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((b for b in document["benchmarks"] if b["name"] == name), None)


def _machine(document: dict[str, Any]) -> str:
    machine = document["machine"]
    return f"{machine['cores']} cores, {machine['system']}, Python {machine['python']}"


def _text(
    x: float, y: float, words: str, *, size: int, colour: str, weight: int = 400, anchor: str = ""
) -> str:
    placed = f" text-anchor='{anchor}'" if anchor else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' font-weight='{weight}'"
        f" fill='{colour}'{placed}>{escape(words)}</text>"
    )


def _quoted(words: str) -> str:
    return escape(words, {"'": "&apos;"})


def merged(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns one document; of the same benchmark the later one counts."""
    found: dict[tuple[str, int], Any] = {}
    for document in documents:
        for benchmark in document["benchmarks"]:
            found[benchmark["name"], benchmark.get("backlog", 0)] = benchmark
    return {"machine": documents[-1]["machine"], "benchmarks": [*found.values()]}


PICTURES = {"peers.svg": peers, "goals.svg": goals}


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "docs" / "images",
    show_default="docs/images",
)
def main(results: tuple[Path, ...], into: Path) -> None:
    """Draw the figures that `python -m benchmarks … --json` has printed.

    Of several files a later one replaces what an earlier one has of the same benchmark. Draws
    peers.svg, the jobs a second of each system, and goals.svg, how each figure stands to its
    goal. What the results lack is not drawn.
    """
    document = merged([json.loads(file.read_text()) for file in results])
    into.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        drawn = picture(document)
        if drawn is not None:
            (into / name).write_text(drawn)
            click.echo(into / name)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.plots")

"""Pictures of results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.figures import Goal, compared, measured
from benchmarks.plots import goals, merged, peers

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"cores": 2, "system": "Linux x86_64", "python": "3.11"}


def _document(**figures: Any) -> dict[str, Any]:
    return {
        "machine": MACHINE,
        "benchmarks": [
            {"name": name, "jobs": 2_000, "backlog": 0, "figures": [one.as_json() for one in many]}
            for name, many in figures.items()
        ],
    }


def _against(system: str, ours: float, theirs: float) -> Any:
    return compared("jobwire", [ours], "jobs/s", against=system, base=[theirs])


def _words(drawn: str | None) -> list[str]:
    assert drawn is not None
    return [text.text or "" for text in ElementTree.fromstring(drawn).iter() if text.text]


def _bars(drawn: str | None) -> list[float]:
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    return [float(one.attrib["width"]) for one in root.iter() if one.tag.endswith("rect")]


def test_systems_are_drawn_from_the_fastest_to_the_slowest() -> None:
    drawn = peers(_document(peers=[_against("slow & old", 100, 10), _against("quick", 120, 60)]))
    words = _words(drawn)
    assert words.index("Jobwire") < words.index("quick") < words.index("slow & old")
    assert [round(width / _bars(drawn)[0], 2) for width in _bars(drawn)] == [1.0, 0.55, 0.09]


def test_a_figure_that_misses_its_goal_stays_short_of_the_line() -> None:
    document = _document(
        memory=[measured("a job", [500.0], "bytes", goal=Goal("at most", 1_000))],
        streams=[measured("rate", [50.0], "jobs/s", goal=Goal("at least", 100))],
        output=[measured("no goal", [1.0], "s")],
    )
    good, bad = _bars(goals(document))
    assert round(good / bad, 2) == 4.0
    words = " ".join(_words(goals(document)))
    assert "memory: a job" in words
    assert "no goal" not in words


def test_results_without_such_figures_draw_nothing() -> None:
    assert peers(_document()) is None
    assert goals(_document(output=[measured("no goal", [1.0], "s")])) is None


def test_a_later_result_replaces_an_earlier_one() -> None:
    first = _document(peers=[_against("x", 1, 1)], memory=[])
    second = _document(peers=[_against("x", 2, 1)])
    names = {one["name"]: one for one in merged([first, second])["benchmarks"]}
    assert names["peers"]["figures"][0]["value"]["median"] == 2
    assert set(names) == {"peers", "memory"}


def test_the_command_writes_what_it_can_draw(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(_document(peers=[_against("x", 2, 1)])))
    command = [sys.executable, "-m", "benchmarks.plots", str(file), "--into", str(tmp_path / "i")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [one.name for one in (tmp_path / "i").iterdir()] == ["peers.svg"]

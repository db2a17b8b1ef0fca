"""The hops of a lone job, put together from what three processes noted."""

from __future__ import annotations

import importlib
import json
from functools import reduce
from pathlib import Path

import pytest

from benchmarks.hops import PRODUCER, SERVER, Hop, Trace, Traces, Way, hops_of, middle, walk
from benchmarks.traced import SDK
from benchmarks.traced import SERVER as SERVER_SEAMS

WAY = Way(
    "there and back",
    "submit$",
    (
        Hop("there", SERVER, "in "),
        Hop("claim", SERVER, "ran claim", optional=True),
        Hop("answer", SERVER, "out (?!Other)"),
        Hop("back", PRODUCER, "submitted$"),
    ),
)


def _traces(folder: Path, **moments: list[tuple[int, str]]) -> Traces:
    traces: Traces = {}
    for part, noted in moments.items():
        file = folder / part
        file.write_text("".join(json.dumps(moment) + "\n" for moment in noted))
        traces[part] = Trace(file)
    return traces


def test_hops_follow_a_job_from_process_to_process_and_add_up(tmp_path: Path) -> None:
    traces = _traces(
        tmp_path,
        producer=[(100, "submit"), (190, "submitted"), (200, "submit")],
        server=[
            (90, "in A"),
            (120, "in A"),
            (130, "ran claim"),
            (140, "out Other"),
            (150, "out A"),
        ],
    )
    took = walk(WAY, traces, 100, 200)
    assert took == {"there": 20, "claim": 10, "answer": 20, "back": 40}
    assert sum(took.values()) == 90


def test_an_optional_hop_that_comes_after_the_next_one_is_another_jobs(tmp_path: Path) -> None:
    traces = _traces(
        tmp_path,
        producer=[(100, "submit"), (190, "submitted")],
        server=[(120, "in A"), (150, "out A"), (160, "ran claim")],
    )
    assert walk(WAY, traces, 100, 200) == {"there": 20, "answer": 30, "back": 40}


def test_a_job_that_is_not_done_when_the_next_one_begins_is_left_out(tmp_path: Path) -> None:
    traces = _traces(
        tmp_path,
        producer=[(0, "submit"), (90, "submitted"), (100, "submit"), (220, "submitted")],
        server=[(20, "in A"), (30, "out A"), (120, "in A"), (230, "out A")],
    )
    found, begun = hops_of(WAY, traces, 0, 200)
    assert begun == 2
    assert found == [{"there": 20, "answer": 10, "back": 60}]


def test_where_nothing_is_seen_nothing_is_found(tmp_path: Path) -> None:
    traces = _traces(tmp_path, producer=[(100, "submit")], server=[])
    assert hops_of(WAY, traces, 0, 200) == ([], 1)


def test_the_middle_half_is_chosen_by_the_whole() -> None:
    jobs = [{"a": 0, "b": whole} for whole in (9, 1, 5, 4, 1000, 6, 3, 7)]
    assert [took["b"] for took in middle(jobs)] == [4, 5, 6, 7]


@pytest.mark.parametrize("seam", [*SERVER_SEAMS, *SDK])
def test_each_seam_that_is_traced_is_there(seam: str) -> None:
    # Some may be missing for the sake of earlier releases: a name that is changed is found here.
    module, _, path = seam.partition(":")
    assert callable(reduce(getattr, path.split("."), importlib.import_module(module)))

"""Summing up and printing figures."""

from __future__ import annotations

import pytest

from benchmarks.figures import Goal, compared, line, measured, quantile


def test_a_ratio_is_taken_within_each_round() -> None:
    # The second round was twice as slow on both sides, which must not show.
    figure = compared("x", [10, 5, 10], "calls/s", against="y", base=[20, 10, 20])
    assert figure.ratio is not None
    assert figure.ratio.of == (0.5, 0.5, 0.5)
    assert figure.ratio.base == 20


def test_a_goal_is_for_the_ratio_where_there_is_one() -> None:
    goal = Goal("at most", 2)
    assert compared("x", [30.0], "us", against="y", base=[20.0], goal=goal).met is True
    assert compared("x", [50.0], "us", against="y", base=[20.0], goal=goal).met is False


def test_a_goal_is_for_the_value_where_there_is_no_ratio() -> None:
    assert measured("x", [699.0], "bytes", goal=Goal("at most", 700)).met is True
    assert measured("x", [699.0], "bytes", goal=Goal("at least", 700)).met is False


def test_a_figure_without_a_goal_neither_meets_nor_misses_one() -> None:
    assert measured("x", [1.0], "us").met is None


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 1), (0.5, 3), (0.99, 5), (1.0, 5)])
def test_a_quantile_is_one_of_the_values(fraction: float, expected: float) -> None:
    assert quantile([5, 1, 4, 2, 3], fraction) == expected


def test_a_line_names_value_unit_ratio_and_what_it_is_against() -> None:
    text = line(
        compared(
            "SubmitJob",
            [4000, 5000, 6000],
            "calls/s",
            against="an echo",
            base=[10000, 10000, 10000],
            goal=Goal("at least", 0.6),
        )
    )
    for part in ("SubmitJob", "5,000 calls/s", "4,500 to 5,500", "0.50 of an echo at 10,000"):
        assert part in text
    assert text.endswith("goal at least 0.6: MISSED")

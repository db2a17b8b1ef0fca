"""Parts of the harness: plans, wishes, histories, figures."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

from tests.faults.history import Follower, Journal, read
from tests.faults.lives import reachable
from tests.faults.plan import QUICK, Pace, draw
from tests.faults.report import percentile
from tests.faults.wishes import draw as draw_wish


def test_a_seed_fixes_every_fault() -> None:
    targets = {"kill": ["a", "b"], "stop": ["a", "c"], "cut": ["link"]}
    first, again = (draw(7, 600, targets, Pace()) for _ in range(2))
    assert first == again
    assert first != draw(8, 600, targets, Pace())
    for name in ("a", "b", "c", "link"):
        own = [fault for fault in first if fault.target == name]
        assert all(one.end_s < two.at_s for one, two in pairwise(own)), "one at a time"
    assert all(1 <= fault.for_s <= 60 for fault in first if fault.what == "stop")


def test_an_hour_has_the_kills_and_stops_that_are_asked_for() -> None:
    targets = {"kill": [*"abcdefg"], "stop": [*"abcdefg"], "term": [*"abcd"]}
    kinds = [fault.what for fault in draw(1, 0.6 * 3600, targets, Pace())]
    assert kinds.count("kill") >= 450
    assert kinds.count("stop") >= 270


def test_a_quick_pace_holds_several_dozen_faults_in_half_a_minute() -> None:
    targets = {"kill": [*"abcdefg"], "stop": [*"abcdefg"], "term": [*"abcd"], "cut": ["l"]}
    assert len(draw(1, 30, targets, QUICK)) >= 36


def test_a_seed_fixes_what_is_asked_for() -> None:
    wishes = [draw_wish(random.Random(3)) for _ in range(2)]
    assert wishes[0] == wishes[1]


def test_the_table_says_what_may_follow() -> None:
    assert reachable("PENDING", 1) == {"RUNNING", "CANCELLED", "EXPIRED", "FAILED"}
    assert "SUCCEEDED" in reachable("PENDING", 2)
    assert reachable("SUCCEEDED", 1) == set()


def test_a_history_is_read_in_the_order_of_time_without_lines_that_are_cut(tmp_path: Path) -> None:
    journals = [Journal(tmp_path / f"{name}.jsonl", name) for name in "ab"]
    for number in range(6):
        journals[number % 2].write("tick", number=number)
    for journal in journals:
        journal.close()
    with (tmp_path / "a.jsonl").open("a") as cut:
        cut.write('{"t": 1, "wh')
    assert [line["number"] for line in read(tmp_path)] == [*range(6)]


def test_a_history_is_followed_while_it_is_written(tmp_path: Path) -> None:
    follower, journal = Follower(tmp_path, "tick"), Journal(tmp_path / "a.jsonl", "a")
    assert follower.since(0) == []
    for number in range(2):
        journal.write("tick", number=number)
        journal.write("tock", number=number)
        assert [line["number"] for line in follower.since(0)] == [*range(number + 1)]
    assert follower.since(follower.events[1]["t"]) == follower.events[1:]
    journal.close()


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(each) for each in range(1, 101)], 0.99) == 99.0

"""Which jobs a filter means, and how a pace spreads them."""

from __future__ import annotations

import pytest

from jobwire_server.domain.decisions.filters import JobFilter, Pace
from jobwire_server.domain.model import Attempt, Failure, FailureOrigin, Job, JobState, RecordFacts

S = JobState
FACTS = RecordFacts("op", {}, 0, {"tenant": "a", "kind": "x"}, created_at_ms=1_000)


def job(state: JobState = S.FAILED, *, finished_at_ms: int = 2_000, failure: str = "Broken") -> Job:
    told = Failure(failure, origin=FailureOrigin.WORKER)
    attempts = (Attempt(1, "w", 1, 0, failure=told),) if failure else ()
    return Job("q-x", "q", b"", state, 1, finished_at_ms=finished_at_ms, attempts=attempts)


@pytest.mark.parametrize(
    ("fields", "matches"),
    [
        ({}, True),
        ({"states": (S.FAILED, S.PENDING)}, True),
        ({"states": (S.PENDING,)}, False),
        ({"operation": "op"}, True),
        ({"operation": "o"}, False),
        ({"labels": {"tenant": "a"}}, True),
        ({"labels": {"tenant": "a", "kind": "x"}}, True),
        ({"labels": {"tenant": "b"}}, False),
        ({"labels": {"none": ""}}, False),
        ({"failure_type": "Broken"}, True),
        ({"failure_type": "Broke"}, False),
        ({"failure_origin": FailureOrigin.WORKER}, True),
        ({"failure_origin": FailureOrigin.BROKER}, False),
        ({"failure_type": "Broken", "failure_origin": FailureOrigin.WORKER}, True),
        ({"failure_type": "Broke", "failure_origin": FailureOrigin.WORKER}, False),
        ({"submitted_after_ms": 1_000}, True),
        ({"submitted_after_ms": 1_001}, False),
        ({"submitted_before_ms": 1_001}, True),
        ({"submitted_before_ms": 1_000}, False),
        ({"finished_after_ms": 2_000}, True),
        ({"finished_after_ms": 2_001}, False),
        ({"finished_before_ms": 2_001}, True),
        ({"finished_before_ms": 2_000}, False),
        ({"operation": "op", "failure_type": "Other"}, False),
    ],
    ids=str,
)
def test_each_field_narrows(fields: dict[str, object], matches: bool) -> None:
    wanted = JobFilter("q", **fields)  # type: ignore[arg-type]
    assert wanted.match(job(), FACTS) is matches


def test_what_has_not_ended_matches_no_time_of_its_end() -> None:
    live = job(S.RUNNING, finished_at_ms=0)
    assert not JobFilter("q", finished_before_ms=9_000).match(live, None)
    assert not JobFilter("q", finished_after_ms=1).match(live, None)


def test_a_failure_before_the_success_does_not_count() -> None:
    assert not JobFilter("q", failure_type="Broken").match(job(S.SUCCEEDED), None)
    assert not JobFilter("q", failure_type="Broken").match(job(failure=""), None)
    by_worker = JobFilter("q", failure_origin=FailureOrigin.WORKER)
    assert not by_worker.match(job(S.SUCCEEDED), None)
    assert not by_worker.match(job(failure=""), None)


def test_only_filters_on_what_the_producer_wrote_read_records() -> None:
    course = {"states": (S.FAILED,), "failure_type": "x", "finished_after_ms": 1}
    assert not JobFilter("q", **course).reads_records  # type: ignore[arg-type]
    for fields in ({"operation": "a"}, {"labels": {"a": "b"}}, {"submitted_before_ms": 1}):
        assert JobFilter("q", **fields).reads_records


def test_a_pace_gives_out_moments_one_behind_the_other() -> None:
    pace = Pace(4, 1_000)
    assert [pace.take() for _ in range(5)] == [1_000, 1_250, 1_500, 1_750, 2_000]


def test_moments_that_passed_unused_are_let_go() -> None:
    pace = Pace(10, 1_000)
    pace.take()
    pace.catch_up(5_000)
    assert [pace.take(), pace.take()] == [5_000, 5_100]
    pace.catch_up(5_050)
    assert pace.take() == 5_200

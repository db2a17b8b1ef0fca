"""Due moments, and what is done about those that passed."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobwire_server.domain.decisions.schedules import (
    CATCH_UP,
    LATE_MS,
    LOOK_AT,
    MissedRuns,
    Overlap,
    Plan,
    Step,
    decide,
    identity_of,
    jitter_of,
    moments,
    next_after,
    next_runs,
    shortest_distance,
)

MINUTE = 60_000
DAY = 86_400_000
NOON = int(datetime(2027, 1, 1, 12, tzinfo=UTC).timestamp() * 1000)
MINUTELY = Plan(every_ms=MINUTE, anchor_ms=NOON)
PLANS = [MINUTELY, Plan(cron="* * * * *"), Plan(cron="* * * * *", zone="Europe/Berlin")]


def test_the_moments_of_an_interval_are_its_anchor_and_multiples_from_it() -> None:
    plan = Plan(every_ms=7_000, anchor_ms=NOON + 500)
    assert next_after(plan, NOON) == NOON + 500
    assert next_after(plan, NOON + 500) == NOON + 7_500
    assert next_after(plan, NOON - 7_000) == NOON - 6_500


@pytest.mark.parametrize("plan", PLANS)
def test_nothing_is_due_before_the_start_or_after_the_end(plan: Plan) -> None:
    bounded = Plan(
        cron=plan.cron,
        zone=plan.zone,
        every_ms=plan.every_ms,
        anchor_ms=plan.anchor_ms,
        start_ms=NOON + 5 * MINUTE,
        end_ms=NOON + 7 * MINUTE,
    )
    first = next_after(bounded, NOON - DAY)
    assert list(moments(bounded, first)) == [NOON + at * MINUTE for at in (5, 6, 7)]
    assert next_after(bounded, NOON + 7 * MINUTE) == 0


def test_the_next_runs_are_five_at_most() -> None:
    assert next_runs(MINUTELY, NOON) == tuple(NOON + at * MINUTE for at in range(5))
    assert next_runs(Plan(every_ms=MINUTE, end_ms=NOON), NOON) == (NOON,)
    assert next_runs(MINUTELY, 0) == ()


def test_the_shortest_distance_is_that_of_the_closest_moments() -> None:
    assert shortest_distance(MINUTELY, NOON) == MINUTE
    assert shortest_distance(Plan(cron="0,5 6 * * *"), NOON) == 5 * MINUTE
    assert shortest_distance(Plan(cron="0 6 * * *", end_ms=NOON + DAY), NOON) == 0


@pytest.mark.parametrize("missed", MissedRuns)
@pytest.mark.parametrize("plan", PLANS)
def test_a_moment_that_has_just_come_is_run_and_asks_for_its_overlap(
    plan: Plan, missed: MissedRuns
) -> None:
    plan = Plan(plan.cron, plan.zone, plan.every_ms, plan.anchor_ms, missed_runs=missed)
    for late in (0, 20, MINUTE - 1):
        assert decide(plan, NOON, NOON + late) == [Step(NOON, NOON + MINUTE, 0, NOON, Overlap.SKIP)]


@pytest.mark.parametrize("plan", PLANS)
def test_of_what_was_missed_the_latest_runs(plan: Plan) -> None:
    latest = NOON + 9 * MINUTE
    assert decide(plan, NOON, latest + 30_000) == [
        Step(NOON, latest + MINUTE, 9, latest, Overlap.SKIP)
    ]


def test_skip_leaves_out_what_is_more_than_a_minute_late() -> None:
    plan = Plan(every_ms=DAY, anchor_ms=NOON, missed_runs=MissedRuns.SKIP)
    (run,) = decide(plan, NOON, NOON + 3 * DAY + LATE_MS)
    assert run == Step(NOON, NOON + 4 * DAY, 3, NOON + 3 * DAY, Overlap.SKIP)
    (left_out,) = decide(plan, NOON, NOON + 3 * DAY + LATE_MS + 1)
    assert left_out == Step(NOON, NOON + 4 * DAY, 4, 0)


@pytest.mark.parametrize("plan", PLANS)
def test_run_all_makes_up_for_each_oldest_first(plan: Plan) -> None:
    plan = Plan(plan.cron, plan.zone, plan.every_ms, plan.anchor_ms, missed_runs=MissedRuns.RUN_ALL)
    steps = decide(plan, NOON, NOON + 3 * MINUTE + 1)
    assert steps == [
        Step(NOON + at * MINUTE, NOON + (at + 1) * MINUTE, 0, NOON + at * MINUTE, Overlap.ALLOW)
        for at in range(4)
    ]


@pytest.mark.parametrize("plan", PLANS)
def test_run_all_leaves_out_what_is_older_than_its_window(plan: Plan) -> None:
    plan = Plan(
        plan.cron,
        plan.zone,
        plan.every_ms,
        plan.anchor_ms,
        missed_runs=MissedRuns.RUN_ALL,
        catch_up_ms=3 * MINUTE,
    )
    now = NOON + 10 * MINUTE
    steps = decide(plan, NOON, now)
    # One that is just as old as the window is made up for.
    assert [step.run_ms for step in steps] == [NOON + at * MINUTE for at in (7, 8, 9, 10)]
    assert [step.missed for step in steps] == [7, 0, 0, 0]
    assert steps[0].due_ms == NOON
    rare = Plan(
        every_ms=DAY, anchor_ms=NOON, missed_runs=MissedRuns.RUN_ALL, catch_up_ms=3 * MINUTE
    )
    assert decide(rare, NOON, NOON + DAY - 1) == [Step(NOON, NOON + DAY, 1, 0)]


def test_a_schedule_that_is_over_has_no_next_moment() -> None:
    plan = Plan(every_ms=MINUTE, anchor_ms=NOON, end_ms=NOON + MINUTE)
    (step,) = decide(plan, NOON, NOON + DAY)
    assert step == Step(NOON, 0, 1, NOON + MINUTE, Overlap.SKIP)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(MissedRuns),
    st.sampled_from(["* * * * *", "*/5 * * * *", ""]),
    st.integers(0, 3 * LOOK_AT),
    st.integers(0, MINUTE),
    st.integers(1, 4 * LOOK_AT),
)
def test_each_moment_is_settled_once_however_much_was_missed(
    missed: MissedRuns, cron: str, minutes: int, rest: int, window: int
) -> None:
    every = 0 if cron else MINUTE
    plan = Plan(
        cron,
        every_ms=every,
        anchor_ms=NOON,
        missed_runs=missed,
        catch_up_ms=window * MINUTE,
    )
    now = NOON + minutes * MINUTE + rest
    due, ran, left_out, passes = NOON, [], 0, 0
    while due <= now:
        steps = decide(plan, due, now)
        passes += 1
        assert 0 < len(steps) <= CATCH_UP + 1
        for step in steps:
            assert step.due_ms == due < step.next_ms
            due = step.next_ms
            left_out += step.missed
            if step.run_ms:
                ran.append(step.run_ms)
    passed = [ms for ms in islice(moments(plan, NOON), 3 * LOOK_AT + 2) if ms <= now]
    assert len(ran) + left_out == len(passed)
    assert all(earlier < later for earlier, later in pairwise(ran))
    assert passes <= len(passed) / min(CATCH_UP, LOOK_AT) + 2
    if missed is MissedRuns.RUN_ALL:
        assert ran == [ms for ms in passed if ms >= now - window * MINUTE]
    elif missed is MissedRuns.RUN_LATEST:
        assert ran == passed[-1:]
    else:
        assert ran == [ms for ms in passed[-1:] if now - ms <= LATE_MS]


def test_a_moment_has_one_identity_and_another_schedule_has_another() -> None:
    same = identity_of("q", "s", "c", NOON)
    assert same == identity_of("q", "s", "c", NOON)
    others = {
        identity_of("p", "s", "c", NOON),
        identity_of("q", "t", "c", NOON),
        identity_of("q", "s", "d", NOON),
        identity_of("q", "s", "c", NOON + 1),
    }
    assert len(others | {same}) == 5


@given(st.integers(0, 3_600_000), st.integers(0, 1_000))
def test_the_jitter_is_bounded_and_the_same_for_a_moment(most: int, moment: int) -> None:
    plan = Plan(every_ms=MINUTE, jitter_ms=most)
    found = jitter_of(plan, identity_of("q", "s", "c", moment))
    assert 0 <= found <= most
    assert found == jitter_of(plan, identity_of("q", "s", "c", moment))


def test_the_jitter_spreads_schedules_of_one_moment() -> None:
    plan = Plan(every_ms=MINUTE, jitter_ms=999)
    found = {jitter_of(plan, identity_of("q", f"s{at}", "c", NOON)) // 100 for at in range(200)}
    assert found == set(range(10))

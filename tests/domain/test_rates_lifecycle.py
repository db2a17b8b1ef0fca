"""Rates, and the state table itself."""

from __future__ import annotations

from jobwire_server.domain.decisions.lifecycle import TRANSITIONS, Event
from jobwire_server.domain.decisions.rates import SAMPLE_MS, SAMPLES, rates
from jobwire_server.domain.model import JobState


def test_a_rate_is_the_difference_over_the_window() -> None:
    samples = [(60_000, {"submitted": 100}), (50_000, {"submitted": 60, "failed": 4})]
    found = rates(70_000, {"submitted": 160, "failed": 4}, samples)
    assert found.window_ms == 20_000
    assert found.per_second == {"submitted": 5.0, "failed": 0.0}


def test_without_an_earlier_sample_there_is_no_rate() -> None:
    assert rates(1_000, {"submitted": 5}, []).window_ms == 0
    assert rates(1_000, {"submitted": 5}, [(1_000, {"submitted": 0})]).window_ms == 0


def test_of_samples_older_than_the_window_the_newest_counts_from_its_beginning() -> None:
    now, window = 10_000_000, SAMPLE_MS * SAMPLES
    samples = [(now - 2 * window, {"submitted": 3}), (now - 3 * window, {"submitted": 0})]
    found = rates(now, {"submitted": 9}, samples)
    assert found.window_ms == window
    assert found.per_second == {"submitted": 6_000 / window}
    near = [(now - 1_000, {"submitted": 8}), *samples]
    assert rates(now, {"submitted": 9}, near).per_second == {"submitted": 1.0}


def test_totals_that_went_back_make_no_negative_rate() -> None:
    assert rates(2_000, {"submitted": 0}, [(1_000, {"submitted": 9})]).per_second == {
        "submitted": 0.0
    }


def test_no_event_but_a_redrive_leads_out_of_a_terminal_state() -> None:
    for (state, event), target in TRANSITIONS.items():
        assert not state.terminal or target is state or event is Event.REDRIVE


def test_every_state_can_be_reached_and_every_live_one_can_be_left() -> None:
    reached = {JobState.PENDING, JobState.SCHEDULED} | set(TRANSITIONS.values())
    assert reached == set(JobState)
    left = {
        state
        for (state, event), target in TRANSITIONS.items()
        if target is not state and event is not Event.REDRIVE
    }
    assert left == {state for state in JobState if not state.terminal}


def test_every_event_happens_to_some_state() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)

"""How many jobs a worker keeps ready."""

from __future__ import annotations

from jobwire.worker.prefetch import REST_TICKS, Prefetch


def test_the_number_follows_what_a_twentieth_of_a_second_takes() -> None:
    prefetch = Prefetch(None, 9_000)
    assert prefetch.jobs == 0
    assert prefetch.follow(200)
    assert prefetch.jobs == 100
    assert prefetch.follow(0)
    assert prefetch.jobs == 0


def test_slow_jobs_are_never_kept_ready() -> None:
    prefetch = Prefetch(None, 9_000)
    assert not prefetch.follow(1)
    assert prefetch.jobs == 0


def test_small_changes_are_not_told() -> None:
    prefetch = Prefetch(None, 9_000)
    prefetch.follow(200)
    assert not prefetch.follow(220)
    assert prefetch.jobs == 100
    assert prefetch.follow(400)
    assert prefetch.jobs == 200


def test_there_is_a_most() -> None:
    prefetch = Prefetch(None, 50)
    prefetch.follow(10_000)
    assert prefetch.jobs == 50
    assert Prefetch(80, 50).jobs == 50


def test_after_jobs_had_to_wait_none_are_kept_for_a_while() -> None:
    prefetch = Prefetch(None, 9_000)
    prefetch.follow(200)
    prefetch.stop()
    for _ in range(REST_TICKS):
        assert not prefetch.follow(200)
        assert prefetch.jobs == 0
    assert prefetch.follow(200)
    assert prefetch.jobs == 100

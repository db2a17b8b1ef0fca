"""When a server may tell what others have failed to do in time."""

from __future__ import annotations

import pytest

from jobwire_server.workers.attention import LATE_S, Attention

PERIOD_S = 1.0
PATIENCE_S = 4.0
NOW_MS = 1_700_000_000_000


class Looks:
    """Looks at a store whose clock and whose server's clock a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.store_ms = NOW_MS
        self.attention = Attention(PATIENCE_S, lambda: self.now_s)

    def after(self, seconds: float, store_s: float | None = None) -> Looks:
        self.now_s += seconds
        self.store_ms += round((seconds if store_s is None else store_s) * 1000)
        self.attention.looked(self.store_ms, PERIOD_S)
        return self

    def steady(self, seconds: float) -> Looks:
        for _ in range(round(seconds / PERIOD_S)):
            self.after(PERIOD_S)
        return self


def test_a_server_that_has_just_begun_judges_nobody_until_workers_had_time_to_come() -> None:
    looks = Looks()
    assert looks.attention.not_after_ms() == 0
    looks.after(0)
    assert looks.attention.not_after_ms() == 0
    looks.steady(PATIENCE_S - PERIOD_S)
    assert not looks.attention.judges
    looks.steady(PERIOD_S)
    assert looks.attention.judges
    assert looks.attention.not_after_ms() == looks.store_ms + LATE_S * 1000


@pytest.mark.parametrize(
    ("server_s", "store_s"), [(10.0, 10.0), (1.0, 60.0)], ids=["stopped", "clock set forward"]
)
def test_after_a_gap_it_waits_again(server_s: float, store_s: float) -> None:
    looks = Looks().after(0).steady(10)
    assert looks.attention.judges
    looks.after(server_s, store_s)
    assert looks.attention.not_after_ms() == 0
    looks.steady(PATIENCE_S)
    assert looks.attention.judges


def test_before_it_has_looked_again_a_gap_is_one_as_well() -> None:
    looks = Looks().after(0).steady(10)
    looks.now_s += PERIOD_S + LATE_S + 0.1
    assert looks.attention.not_after_ms() == 0


def test_a_look_that_is_a_little_late_leaves_no_gap() -> None:
    looks = Looks().after(0).steady(10).after(PERIOD_S + LATE_S)
    assert looks.attention.judges


def test_work_after_a_look_may_take_its_time_but_not_stand_still() -> None:
    looks = Looks().after(0).steady(10)
    for _ in range(5):
        looks.now_s += PERIOD_S
        looks.store_ms += 1_000
        looks.attention.still()
    assert looks.after(0).attention.judges
    looks.now_s += 10
    looks.attention.still()
    assert not looks.attention.judges


def test_a_clock_that_is_set_back_is_no_gap() -> None:
    looks = Looks().after(0).steady(10).after(1.0, -40.0)
    assert looks.attention.judges
    assert looks.attention.not_after_ms() == looks.store_ms + LATE_S * 1000

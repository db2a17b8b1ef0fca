"""The store's clock as a server sees it."""

from __future__ import annotations

from jobwire_server.domain.store_clock import StoreClock


def test_it_goes_on_from_the_moment_that_the_store_told() -> None:
    monotonic = [100.0]
    clock = StoreClock(lambda: monotonic[0])
    clock.told(5_000_000)
    monotonic[0] += 1.5
    assert clock.now_ms() == 5_001_500
    clock.told(4_000_000)
    assert clock.now_ms() == 4_000_000

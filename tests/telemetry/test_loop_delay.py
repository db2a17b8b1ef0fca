"""How late the event loop comes round."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from jobwire_server.telemetry.loop_delay import STALL_S, LoopDelay
from jobwire_server.telemetry.metrics import LOOP, STALLS, MethodStats, RpcMetrics, SharedRpcMetrics
from jobwire_server.telemetry.shared_counters import SharedCounters

from tests.support.waiting import eventually


@asynccontextmanager
async def looked_at(processor_s: Callable[[], float]) -> AsyncIterator[MethodStats]:
    """Looks at this loop, which gets so much of a processor."""
    metrics = RpcMetrics()
    delay = LoopDelay(metrics, processor_s)
    delay.start()
    stats = metrics.method(LOOP)
    await eventually(lambda: looks(stats) > 0, "the loop was looked at")
    yield stats
    delay.stop()


def looks(stats: MethodStats) -> float:
    return sum(stats.buckets)


async def _hold_up(stats: MethodStats) -> None:
    before, late = looks(stats), stats.seconds
    time.sleep(2 * STALL_S)
    await eventually(lambda: looks(stats) > before, "the loop was looked at again")
    assert stats.seconds > late + STALL_S


async def test_a_loop_that_computes_for_long_has_stalled() -> None:
    # As if it computed all the time: a busy machine gives a test little of its own.
    async with looked_at(time.monotonic) as stats:
        await _hold_up(stats)
        assert stats.cells[STALLS] >= 1


@pytest.mark.parametrize("share", [0.0, 0.5])
async def test_a_loop_that_gets_too_little_of_a_processor_is_late_and_has_not_stalled(
    share: float,
) -> None:
    async with looked_at(lambda: time.monotonic() * share) as stats:
        await _hold_up(stats)
        assert stats.cells[STALLS] == 0


async def test_the_delays_of_several_processes_are_added_up() -> None:
    shared = [SharedCounters.create() for _ in range(2)]
    for each in shared:
        stats = RpcMetrics(each).method(LOOP)
        stats.observe(0.2)
        stats.cells[STALLS] += 1
    registry = CollectorRegistry()
    registry.register(SharedRpcMetrics(shared))
    text = generate_latest(registry).decode()
    assert "jobwire_event_loop_stalls_total 2.0" in text
    assert 'jobwire_event_loop_delay_seconds_bucket{le="0.1"} 0.0' in text
    assert 'jobwire_event_loop_delay_seconds_bucket{le="0.25"} 2.0' in text
    # It is no method.
    assert f'"{LOOP}"' not in text

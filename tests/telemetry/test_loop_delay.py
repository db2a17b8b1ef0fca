"""How late the event loop comes round."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from jobwire_server.telemetry.loop_delay import STALL_S, LoopDelay
from jobwire_server.telemetry.metrics import LOOP, STALLS, MethodStats, RpcMetrics, SharedRpcMetrics
from jobwire_server.telemetry.shared_counters import SharedCounters

from tests.support.waiting import eventually


@pytest.fixture
async def stats() -> AsyncIterator[MethodStats]:
    metrics = RpcMetrics()
    delay = LoopDelay(metrics)
    delay.start()
    stats = metrics.method(LOOP)
    await eventually(lambda: looks(stats) > 0, "the loop was looked at")
    yield stats
    delay.stop()


def looks(stats: MethodStats) -> float:
    return sum(stats.buckets)


async def test_a_loop_that_computes_for_long_has_stalled(stats: MethodStats) -> None:
    before = looks(stats)
    began = time.thread_time()
    while time.thread_time() - began < 2 * STALL_S:
        pass
    await eventually(lambda: looks(stats) > before, "the loop was looked at again")
    assert stats.cells[STALLS] == 1
    assert stats.seconds > STALL_S


async def test_a_loop_that_only_gets_no_processor_has_not_stalled(stats: MethodStats) -> None:
    before = looks(stats)
    time.sleep(2 * STALL_S)
    await eventually(lambda: looks(stats) > before, "the loop was looked at again")
    assert stats.cells[STALLS] == 0
    # Late it was all the same.
    assert stats.seconds > STALL_S


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

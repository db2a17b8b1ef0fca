"""Shared counters and the metrics that are added up from them."""

from __future__ import annotations

import os

from grpc import StatusCode
from prometheus_client import CollectorRegistry, generate_latest

from jobwire_server.telemetry.metrics import (
    CODES,
    IN_FLIGHT,
    ProcessesCollector,
    RpcMetrics,
    SharedRpcMetrics,
)
from jobwire_server.telemetry.shared_counters import MAX_ROWS, NAME_BYTES, SharedCounters, State


def _shown(*collectors: object) -> str:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)  # type: ignore[arg-type]
    return generate_latest(registry).decode()


def test_the_codes_are_those_of_grpc_in_their_order() -> None:
    assert list(CODES) == [code.name for code in sorted(StatusCode, key=lambda c: c.value[0])]


def test_a_counters_is_seen_by_whoever_maps_it() -> None:
    counters = SharedCounters.create()
    seen = SharedCounters(counters.fd)
    cells = counters.row("/a/B")
    assert cells is not None
    cells[3] = 7
    counters.state, counters.beat, counters.store_up = State.SERVING, 1.5, True
    assert [(name, row[3]) for name, row in seen.rows()] == [("/a/B", 7.0)]
    assert (seen.state, seen.beat, seen.store_up) == (State.SERVING, 1.5, True)


def test_the_next_process_goes_on_counting_on_the_counters_of_the_last() -> None:
    counters = SharedCounters.create()
    first = RpcMetrics(SharedCounters(counters.fd)).method("/a/B")
    first.count("OK")
    first.cells[IN_FLIGHT] += 1
    counters.clear_levels()
    second = RpcMetrics(SharedCounters(counters.fd)).method("/a/B")
    assert (second.in_flight, second.codes) == (0, {"OK": 1})
    second.count("OK")
    assert first.codes == {"OK": 2}
    assert len(list(counters.rows())) == 1


def test_a_full_counters_and_a_long_name_are_counted_by_the_process_alone() -> None:
    counters = SharedCounters.create()
    for number in range(MAX_ROWS):
        assert counters.row(f"/a/{number}") is not None
    assert counters.row("/a/more") is None
    assert SharedCounters.create().row("x" * (NAME_BYTES + 1)) is None
    stats = RpcMetrics(counters).method("/a/more")
    stats.count("OK")
    assert stats.codes == {"OK": 1}


def test_calls_of_several_processes_are_shown_as_their_sum() -> None:
    several = [SharedCounters.create(), SharedCounters.create()]
    for number, counters in enumerate(several, 1):
        stats = RpcMetrics(counters).method("/a/B")
        for _ in range(number):
            stats.count("OK")
            stats.observe(0.003 * number)
        stats.cells[IN_FLIGHT] += number
    RpcMetrics(several[1]).method("/a/C").count("NOT_FOUND")
    text = _shown(SharedRpcMetrics(several))
    assert 'jobwire_rpc_total{code="OK",method="/a/B"} 3.0' in text
    assert 'jobwire_rpc_total{code="NOT_FOUND",method="/a/C"} 1.0' in text
    assert 'jobwire_rpc_in_flight{method="/a/B"} 3.0' in text
    assert 'jobwire_rpc_duration_seconds_bucket{le="0.005",method="/a/B"} 1.0' in text
    assert 'jobwire_rpc_duration_seconds_bucket{le="0.01",method="/a/B"} 3.0' in text
    assert 'jobwire_rpc_duration_seconds_count{method="/a/B"} 3.0' in text
    assert 'jobwire_rpc_duration_seconds_sum{method="/a/B"} 0.015' in text


def test_the_numbers_of_a_process_that_does_not_run_are_left_out() -> None:
    text = _shown(ProcessesCollector({"0": os.getpid, "1": lambda: None}))
    assert 'process_resident_memory_bytes{process="0"}' in text
    assert 'process="1"' not in text


def test_processor_time_never_goes_back_when_a_process_takes_anothers_place() -> None:
    pids = [os.getpid(), os.getppid(), os.getpid()]
    collector = ProcessesCollector({"0": lambda: pids[0]})

    def seconds() -> float:
        (family,) = (f for f in collector.collect() if f.name == "process_cpu_seconds")
        return family.samples[0].value

    first = seconds()
    pids.pop(0)
    second = seconds()
    pids.pop(0)
    assert first <= second <= seconds()

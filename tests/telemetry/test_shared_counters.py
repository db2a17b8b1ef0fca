"""Pages and the metrics that are added up from them."""

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
from jobwire_server.telemetry.shared_counters import MAX_ROWS, NAME_BYTES, Page, State


def _shown(*collectors: object) -> str:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)  # type: ignore[arg-type]
    return generate_latest(registry).decode()


def test_the_codes_are_those_of_grpc_in_their_order() -> None:
    assert list(CODES) == [code.name for code in sorted(StatusCode, key=lambda c: c.value[0])]


def test_a_page_is_seen_by_whoever_maps_it() -> None:
    page = Page.create()
    seen = Page(page.fd)
    cells = page.row("/a/B")
    assert cells is not None
    cells[3] = 7
    page.state, page.beat, page.store_up = State.SERVING, 1.5, True
    assert [(name, row[3]) for name, row in seen.rows()] == [("/a/B", 7.0)]
    assert (seen.state, seen.beat, seen.store_up) == (State.SERVING, 1.5, True)


def test_the_next_process_goes_on_counting_on_the_page_of_the_last() -> None:
    page = Page.create()
    first = RpcMetrics(Page(page.fd)).method("/a/B")
    first.count("OK")
    first.cells[IN_FLIGHT] += 1
    page.clear_levels()
    second = RpcMetrics(Page(page.fd)).method("/a/B")
    assert (second.in_flight, second.codes) == (0, {"OK": 1})
    second.count("OK")
    assert first.codes == {"OK": 2}
    assert len(list(page.rows())) == 1


def test_a_full_page_and_a_long_name_are_counted_by_the_process_alone() -> None:
    page = Page.create()
    for number in range(MAX_ROWS):
        assert page.row(f"/a/{number}") is not None
    assert page.row("/a/more") is None
    assert Page.create().row("x" * (NAME_BYTES + 1)) is None
    stats = RpcMetrics(page).method("/a/more")
    stats.count("OK")
    assert stats.codes == {"OK": 1}


def test_calls_of_several_processes_are_shown_as_their_sum() -> None:
    pages = [Page.create(), Page.create()]
    for number, page in enumerate(pages, 1):
        stats = RpcMetrics(page).method("/a/B")
        for _ in range(number):
            stats.count("OK")
            stats.observe(0.003 * number)
        stats.cells[IN_FLIGHT] += number
    RpcMetrics(pages[1]).method("/a/C").count("NOT_FOUND")
    text = _shown(SharedRpcMetrics(pages))
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

"""Every benchmark by its name."""

from __future__ import annotations

from benchmarks import backlog, dispatch_latency, memory, store_time, submit_unary
from benchmarks.frame import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (submit_unary, memory, backlog, store_time, dispatch_latency)
}

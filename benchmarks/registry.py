"""Every benchmark by its name."""

from __future__ import annotations

from benchmarks import (
    backlog,
    call,
    dispatch_latency,
    drain,
    end_to_end,
    hops,
    hot_path,
    idle,
    memory,
    output,
    overload,
    recovery,
    store_time,
    streams,
    submit_one,
    submit_unary,
    unary_feed,
    unary_life,
    watch_cost,
    watchers,
)
from benchmarks.frame import Benchmark
from benchmarks.peers import benchmark as peers
from benchmarks.peers import one as peers_one

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (
        end_to_end,
        drain,
        submit_unary,
        submit_one,
        call,
        unary_feed,
        unary_life,
        overload,
        peers,
        peers_one,
        memory,
        backlog,
        idle,
        store_time,
        dispatch_latency,
        hops,
        streams,
        watchers,
        output,
        watch_cost,
        recovery,
        hot_path,
    )
}

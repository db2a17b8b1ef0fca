"""Prometheus metrics: the counts of RPCs, of one process or of several added up."""

from __future__ import annotations

import functools
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Gauge, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from jobwire_server.telemetry.shared_counters import ROW_CELLS, SharedCounters

BOUNDS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)


CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""The status codes of gRPC, in the order of their numbers."""

IN_FLIGHT = 0
"""The cell with the number of calls in hand, which whoever makes them counts up and down."""
_CODE_AT = {code: at for at, code in enumerate(CODES, 1)}
_BUCKETS_AT = 1 + len(CODES)
_SECONDS_AT = _BUCKETS_AT + len(BOUNDS_S) + 1
assert _SECONDS_AT < ROW_CELLS

SCHEDULES = "schedules"
"""The row of the moments of schedules; those of methods have names that begin with a slash."""
MOMENTS = ("submitted", "skipped", "missed")
"""What becomes of a moment, in the order of the cells from the second on."""
LOOP = "event loop"
"""The row of the event loop's delays, which are kept as the times of a method are."""
STALLS = 1
"""The cell with the number of its stalls."""

Cells: TypeAlias = "list[float] | memoryview[float]"


class MethodStats:
    """The counts of one RPC method: plain numbers, changed by the event loop alone.

    Args:
        method: Its full name: ``/package.Service/Method``.
        cells: Where they are kept; `ROW_CELLS` of them.
    """

    __slots__ = ("cells", "method")

    def __init__(self, method: str, cells: Cells | None = None) -> None:
        self.method = method
        self.cells: Cells = [0.0] * ROW_CELLS if cells is None else cells

    @property
    def in_flight(self) -> int:
        """Calls in hand."""
        return int(self.cells[IN_FLIGHT])

    @property
    def codes(self) -> dict[str, int]:
        """Calls that ended, by code; only codes that occurred."""
        counts = self.cells[1:_BUCKETS_AT]
        return {code: int(n) for code, n in zip(CODES, counts, strict=True) if n}

    @property
    def buckets(self) -> list[float]:
        """Unary calls by how long they took: one for each of `BOUNDS_S`, and one for the rest."""
        return list(self.cells[_BUCKETS_AT:_SECONDS_AT])

    @property
    def seconds(self) -> float:
        """How long unary calls took together."""
        return float(self.cells[_SECONDS_AT])

    def count(self, code: str) -> None:
        """One call more ended with this code."""
        self.cells[_CODE_AT[code]] += 1

    def observe(self, seconds: float) -> None:
        """One unary call more took so long."""
        self.cells[_BUCKETS_AT + bisect_left(BOUNDS_S, seconds)] += 1
        self.cells[_SECONDS_AT] += seconds


class RpcMetrics(Collector):
    """The counts of all methods. A labelled counter of the library takes a lock for every
    call; these numbers are put into its form when somebody asks for them.

    Args:
        counters: Where another process reads them. None: they are this process's own.
    """

    def __init__(self, counters: SharedCounters | None = None) -> None:
        self._counters = counters
        self._methods: dict[str, MethodStats] = {}

    def method(self, name: str) -> MethodStats:
        """The counts of a method, by its full name: ``/package.Service/Method``."""
        stats = self._methods.get(name)
        if stats is None:
            cells = self._counters.row(name) if self._counters is not None else None
            stats = self._methods[name] = MethodStats(name, cells)
        return stats

    def settled(self, outcome: str, count: int) -> None:
        """So many moments of schedules more were settled: one of `MOMENTS`."""
        self.method(SCHEDULES).cells[1 + MOMENTS.index(outcome)] += count

    def collect(self) -> Iterator[Metric]:
        return _families(list(self._methods.values()))


class SharedRpcMetrics(Collector):
    """The counts of the methods in several processes, added up.

    Args:
        counters: One for each process.
    """

    def __init__(self, counters: Sequence[SharedCounters]) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        sums: dict[str, list[float]] = {}
        for counters in self._counters:
            for name, cells in counters.rows():
                total = sums.setdefault(name, [0.0] * ROW_CELLS)
                for at, value in enumerate(cells):
                    total[at] += value
        return _families([MethodStats(name, cells) for name, cells in sums.items()])


def _families(rows: Iterable[MethodStats]) -> Iterator[Metric]:
    calls = CounterMetricFamily(
        "jobwire_rpc", "Calls that ended, by method and status code", labels=["method", "code"]
    )
    flying = GaugeMetricFamily("jobwire_rpc_in_flight", "Calls in hand", labels=["method"])
    took = HistogramMetricFamily(
        "jobwire_rpc_duration_seconds", "Time of unary calls in the server", labels=["method"]
    )
    moments = CounterMetricFamily(
        "jobwire_schedule_moments",
        "Due moments of schedules that were settled: submitted as a job, skipped because of an"
        " earlier job, or missed",
        labels=["outcome"],
    )
    delays = HistogramMetricFamily(
        "jobwire_event_loop_delay_seconds",
        "How late the event loop came round to a timer, in looks at it some 40 times a second",
    )
    stalls = CounterMetricFamily(
        "jobwire_event_loop_stalls",
        "How often the event loop computed for more than 100 ms without coming round",
    )
    for stats in rows:
        if stats.method == SCHEDULES:
            for at, outcome in enumerate(MOMENTS, 1):
                moments.add_metric([outcome], stats.cells[at])
            continue
        if stats.method == LOOP:
            delays.add_metric([], _cumulated(stats.buckets), stats.seconds)
            stalls.add_metric([], stats.cells[STALLS])
            continue
        for code, count in stats.codes.items():
            calls.add_metric([stats.method, code], count)
        flying.add_metric([stats.method], stats.in_flight)
        buckets = stats.buckets
        if any(buckets):
            took.add_metric([stats.method], _cumulated(buckets), stats.seconds)
    yield calls
    yield flying
    yield took
    yield moments
    yield delays
    yield stalls


class ProcessesCollector(Collector):
    """The usual numbers of a process for each of several, under the label ``process``.

    The processor time of a process that took another's place is added to that of the other.

    Args:
        pids: The processes by label; None: it does not run just now.
    """

    def __init__(self, pids: Mapping[str, Callable[[], int | None]]) -> None:
        self._pids = pids
        self._before: dict[tuple[str, str], float] = {}
        self._last: dict[tuple[str, str], tuple[int, float]] = {}
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        with self._lock:
            for label, pid_of in self._pids.items():
                pid = pid_of()
                if pid is None:
                    continue
                for found in ProcessCollector(
                    pid=functools.partial(str, pid), registry=None
                ).collect():
                    family = families.setdefault(
                        found.name, Metric(found.name, found.documentation, found.type)
                    )
                    for sample in found.samples:
                        value = sample.value
                        if found.type == "counter":
                            value = self._without_steps_back(label, sample.name, pid, value)
                        family.add_sample(sample.name, {"process": label}, value)
        yield from families.values()

    def _without_steps_back(self, label: str, name: str, pid: int, value: float) -> float:
        key = label, name
        last_pid, last = self._last.get(key, (pid, 0.0))
        if last_pid != pid:
            self._before[key] = self._before.get(key, 0.0) + last
        self._last[key] = pid, value
        return self._before.get(key, 0.0) + value


def _cumulated(counts: Iterable[float]) -> list[tuple[str, float]]:
    total, result = 0.0, []
    for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], list(counts), strict=True):
        total += count
        result.append((bound, total))
    return result


class Metrics:
    """What a server tells about itself. Add to `registry` whatever else is worth watching.

    Args:
        rpc: The counts of the methods.
        processes: The processes of the server. None: this one.
    """

    def __init__(self, rpc: Collector, processes: Collector | None = None) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(rpc)
        if processes is None:
            ProcessCollector(registry=self.registry)
        else:
            self.registry.register(processes)
        PlatformCollector(registry=self.registry)

    def gauge(self, name: str, help: str, value: Callable[[], float]) -> None:  # noqa: A002
        """Show a number that is asked for when it is needed, from another thread."""
        Gauge(name, help, registry=self.registry).set_function(value)

"""The moments of schedules in /metrics, of one process and of several."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from jobwire_server.telemetry.metrics import RpcMetrics, SharedRpcMetrics
from jobwire_server.telemetry.shared_counters import SharedCounters


def _shown(collector: RpcMetrics | SharedRpcMetrics) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(collector)
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            assert sample.labels.get("method", "/").startswith("/")
            if sample.name == "jobwire_schedule_moments_total":
                found[sample.labels["outcome"]] = sample.value
    return found


def test_moments_are_counted_by_what_became_of_them() -> None:
    metrics = RpcMetrics()
    metrics.method("/a/B").count("OK")
    metrics.settled("submitted", 3)
    metrics.settled("submitted", 1)
    metrics.settled("missed", 7)
    assert _shown(metrics) == {"submitted": 4, "skipped": 0, "missed": 7}


def test_the_moments_of_several_processes_are_added_up() -> None:
    several = [SharedCounters.create() for _ in range(2)]
    for counters in several:
        metrics = RpcMetrics(counters)
        metrics.method("/a/B").count("OK")
        metrics.settled("skipped", 2)
    assert _shown(SharedRpcMetrics(several)) == {"submitted": 0, "skipped": 4, "missed": 0}

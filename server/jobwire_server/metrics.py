"""Prometheus metrics, and the small HTTP server that shows them and the server's health."""

from __future__ import annotations

import socket
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Gauge, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

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


class MethodStats:
    """The counts of one RPC method: plain numbers, changed by the event loop alone."""

    __slots__ = ("buckets", "codes", "in_flight", "method", "seconds")

    def __init__(self, method: str) -> None:
        self.method = method
        self.in_flight = 0
        self.codes: dict[str, int] = {}
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.seconds = 0.0

    def count(self, code: str) -> None:
        """One call more ended with this code."""
        self.codes[code] = self.codes.get(code, 0) + 1

    def observe(self, seconds: float) -> None:
        """One unary call more took so long."""
        self.buckets[bisect_left(BOUNDS_S, seconds)] += 1
        self.seconds += seconds


class RpcMetrics(Collector):
    """The counts of all methods. A labelled counter of the library takes a lock for every
    call; these numbers are put into its form when somebody asks for them."""

    def __init__(self) -> None:
        self._methods: dict[str, MethodStats] = {}

    def method(self, name: str) -> MethodStats:
        """The counts of a method, by its full name: ``/package.Service/Method``."""
        return self._methods.setdefault(name, MethodStats(name))

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily(
            "jobwire_rpc", "Calls that ended, by method and status code", labels=["method", "code"]
        )
        flying = GaugeMetricFamily("jobwire_rpc_in_flight", "Calls in hand", labels=["method"])
        took = HistogramMetricFamily(
            "jobwire_rpc_duration_seconds", "Time of unary calls in the server", labels=["method"]
        )
        for stats in list(self._methods.values()):
            for code, count in list(stats.codes.items()):
                calls.add_metric([stats.method, code], count)
            flying.add_metric([stats.method], stats.in_flight)
            if any(stats.buckets):
                took.add_metric([stats.method], _cumulated(stats.buckets), stats.seconds)
        yield calls
        yield flying
        yield took


def _cumulated(counts: Iterable[int]) -> list[tuple[str, float]]:
    total, result = 0, []
    for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], list(counts), strict=True):
        total += count
        result.append((bound, float(total)))
    return result


class Metrics:
    """What this process tells about itself. Add to `registry` whatever else is worth watching."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rpc = RpcMetrics()
        self.registry.register(self.rpc)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def gauge(self, name: str, help: str, value: Callable[[], float]) -> None:  # noqa: A002
        """Show a number that is asked for when it is needed, from another thread."""
        Gauge(name, help, registry=self.registry).set_function(value)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Two servers must not share the port unseen.
    allow_reuse_port = False


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class HttpServer:
    """Serves /metrics, /healthz (the process works) and /readyz (it takes calls).

    It runs in a thread, so that it answers even while the event loop is busy.

    Args:
        host: The address to listen on.
        port: 0: a free one.
        metrics: What /metrics shows.
        alive: "" if the process works, else what is wrong.
        ready: "" if it takes calls, else why not.
    """

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Metrics,
        *,
        alive: Callable[[], str],
        ready: Callable[[], str],
    ) -> None:
        self._address = host.strip("[]"), port
        self._metrics_app = make_wsgi_app(metrics.registry)
        self._checks = {"/healthz": alive, "/readyz": ready}
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that it listens on; only after start."""
        assert self._server is not None
        return self._server.server_port

    def start(self) -> None:
        """Listen. Idempotent.

        Raises:
            OSError: The address can't be bound.
        """
        if self._server is not None:
            return
        host, port = self._address
        server_class = _ServerV6 if ":" in host else _Server
        self._server = make_server(host, port, self._answer, server_class, _Quiet)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics-http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening. Idempotent, and fine before start."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        server.shutdown()
        server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics_app(environ, start_response)
            return answer
        check = self._checks.get(path)
        if check is None:
            status, body = "404 Not Found", "try /metrics, /healthz or /readyz"
        else:
            problem = check()
            status, body = ("503 Service Unavailable", problem) if problem else ("200 OK", "ok")
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{body}\n".encode()]

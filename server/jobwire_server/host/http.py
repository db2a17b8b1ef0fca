"""The small HTTP server that shows a server's metrics and health."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from time import monotonic
from typing import Any, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client.exposition import make_wsgi_app

from jobwire_server.host.shared_port import AddressInUse
from jobwire_server.telemetry.metrics import Metrics

Verdict: TypeAlias = tuple[bool, str]
"""Whether all is well, and a word about it."""
OK: Verdict = True, "ok"


MAX_CONNECTIONS = 32
"""At once; each takes a thread."""
CONNECTION_S = 10.0
"""How long one may take, from its first byte to the last of the answer."""
YOUNG_S = 1.0
"""A connection younger than this is not closed to make room for another."""
BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


class _Server(ThreadingMixIn, WSGIServer):
    """Serves each connection in a thread, but no more than some and none for long.

    Requests that somebody leaves half sent would otherwise take a thread each for ever.
    """

    daemon_threads = True
    # A burst waits; a connection that is dropped comes again only after seconds.
    request_queue_size = 128
    # Two servers must not share the port unseen.
    allow_reuse_port = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._begun: dict[Any, float] = {}
        """Open connections and when they began, oldest first."""
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        now = monotonic()
        if len(self._begun) >= MAX_CONNECTIONS:
            oldest, begun = next(iter(self._begun.items()), (None, now))
            if now - begun < YOUNG_S:
                with suppress(OSError):
                    request.send(BUSY, socket.MSG_DONTWAIT)
                super().shutdown_request(request)
                return
            self._break_off(oldest)
        self._begun[request] = now
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Break off what takes too long; called twice a second, and after each connection."""
        overdue = monotonic() - CONNECTION_S
        for request, begun in [*self._begun.items()]:
            if begun > overdue:
                return
            self._break_off(request)

    def shutdown_request(self, request: Any) -> None:
        self._begun.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the other end went away, or was sent away."""

    def _break_off(self, request: Any) -> None:
        self._begun.pop(request, None)
        # Its thread, which reads or writes there, ends with it.
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = CONNECTION_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class HttpServer:
    """Serves /metrics, /healthz (the process works) and /readyz (it takes calls).

    It runs in a thread, so that it answers even while the event loop is busy.

    Args:
        host: The address to listen on.
        port: 0: a free one.
        metrics: What /metrics shows.
        alive: Whether the server works, and what is wrong if it does not.
        ready: Whether it takes calls, and why not.
    """

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Metrics,
        *,
        alive: Callable[[], Verdict],
        ready: Callable[[], Verdict],
    ) -> None:
        self._shown = f"{host}:{port}"
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
            AddressInUse: The address can't be bound.
        """
        if self._server is not None:
            return
        host, port = self._address
        server_class = _ServerV6 if ":" in host else _Server
        try:
            self._server = make_server(host, port, self._answer, server_class, _Quiet)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
                raise
            raise AddressInUse(
                f"http_listen: {self._shown} can't be bound ({error.strerror}); stop"
                ' whoever uses it, choose another address, or turn it off with --http-listen ""'
            ) from error
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
            good, body = check()
            status = "200 OK" if good else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{body}\n".encode()]

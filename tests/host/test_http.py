"""The HTTP side stays there for whoever asks properly, whatever others do."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from jobwire_server.host import http as module
from jobwire_server.host.http import OK, HttpServer
from jobwire_server.telemetry.metrics import Metrics, RpcMetrics

HALF = b"GET /metrics HTTP/1.1\r\nHost: "


@pytest.fixture
def http() -> Iterator[HttpServer]:
    server = HttpServer(
        "127.0.0.1", 0, Metrics(RpcMetrics()), alive=lambda: OK, ready=lambda: (False, "why")
    )
    server.start()
    yield server
    server.stop()


def _connect(server: HttpServer, sent: bytes = HALF) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(sent)
    return connection


def _get(server: HttpServer, path: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=20) as answer:
        answer.read()
        status: int = answer.status
        return status


def _is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def test_half_sent_requests_are_broken_off(
    http: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTION_S", 0.2)
    with ExitStack() as stack:
        for connection in [stack.enter_context(_connect(http)) for _ in range(5)]:
            assert _is_closed(connection)
    assert _get(http, "/healthz") == 200


def test_many_half_sent_requests_take_few_threads_and_leave_room(
    http: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "YOUNG_S", 0.0)
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(4 * module.MAX_CONNECTIONS):
            stack.enter_context(_connect(http))
        for _ in range(3):
            assert _get(http, "/metrics") == 200
        assert threading.active_count() - before <= 2 * module.MAX_CONNECTIONS


def test_a_connection_beyond_the_bound_is_told_to_come_again(
    http: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "YOUNG_S", 60.0)
    with ExitStack() as stack:
        connections = [
            stack.enter_context(_connect(http)) for _ in range(module.MAX_CONNECTIONS + 1)
        ]
        assert connections[-1].recv(100).startswith(b"HTTP/1.0 503")


@pytest.mark.parametrize(
    "sent", [b"\xff" * 300, b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"x" * 70_000 + b"\r\n\r\n", b""]
)
def test_what_is_no_request_is_answered_or_closed_without_a_word(
    http: HttpServer, sent: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with _connect(http, sent) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert _is_closed(connection)
    assert _get(http, "/healthz") == 200
    assert capfd.readouterr() == ("", "")

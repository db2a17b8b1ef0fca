"""Real servers and workers, which are gone after the test whatever happened in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.servers import ServerProcess
from tests.support.workers import WorkerProcess

QUICK = (
    *("--lease", "3s", "--heartbeat-interval", "300ms", "--worker-timeout", "1500ms"),
    *("--reconnect-window", "1s"),
)
"""So that what a kill leaves behind comes back within a test."""


@pytest.fixture
def start_server() -> Iterator[Callable[..., ServerProcess]]:
    """Starts a server with flags, quick to notice what is lost."""
    started: list[ServerProcess] = []

    def start(*flags: str, data_dir: Path | None = None) -> ServerProcess:
        server = ServerProcess(*flags, *QUICK, data_dir=data_dir)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def start_worker() -> Iterator[Callable[..., WorkerProcess]]:
    """Starts a worker of tests.e2e.handlers."""
    started: list[WorkerProcess] = []

    def start(target: str, *flags: str) -> WorkerProcess:
        worker = WorkerProcess(target, "tests.e2e.handlers:worker", *flags)
        started.append(worker)
        worker.start()
        return worker

    yield start
    for worker in started:
        worker.remove()

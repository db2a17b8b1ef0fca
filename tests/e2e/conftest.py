"""Real servers and workers, which are gone after the test whatever happened in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
def new_server() -> Iterator[Callable[..., ServerProcess]]:
    """Makes a server, as ServerProcess does, that does not outlive the test."""
    with ExitStack() as made:

        def make(*flags: str, data_dir: Path | None = None, cold: bool = False) -> ServerProcess:
            server = ServerProcess(*flags, data_dir=data_dir, cold=cold)
            made.callback(server.stop)
            return server

        yield make


@pytest.fixture
def start_server(new_server: Callable[..., ServerProcess]) -> Callable[..., ServerProcess]:
    """Starts a server with flags, quick to notice what is lost."""

    def start(*flags: str, data_dir: Path | None = None) -> ServerProcess:
        server = new_server(*flags, *QUICK, data_dir=data_dir)
        server.start()
        return server

    return start


@pytest.fixture
def start_worker() -> Iterator[Callable[..., WorkerProcess]]:
    """Starts a worker of tests.e2e.handlers."""
    with ExitStack() as started:

        def start(target: str, *flags: str) -> WorkerProcess:
            worker = WorkerProcess(target, "tests.e2e.handlers:worker", *flags)
            started.callback(worker.remove)
            worker.start()
            return worker

        yield start

"""A server on each of the real stores, with limits of output that a test can reach."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from jobwire_server.domain.options import Limits

from tests.support.fixtures import broker, valkey_broker
from tests.support.streams import QUICK, StreamServer, stream_server
from tests.watch.support import Hands

__all__ = ["broker", "hands", "server", "valkey_broker"]

OPTIONS = replace(
    QUICK,
    lease_ms=60_000,
    worker_timeout_ms=60_000,
    limits=Limits(max_output_bytes=1 << 20, max_queue_output_bytes=2 << 20),
)


@pytest.fixture
async def server(store_url: str) -> AsyncIterator[StreamServer]:
    """A server on an empty store."""
    async with stream_server(store_url, OPTIONS) as running:
        yield running


@pytest.fixture
async def hands(server: StreamServer) -> AsyncIterator[Hands]:
    """A registered worker, which is a producer and an operator as well."""
    async with Hands(server.address) as running:
        await running.register("default", "other")
        yield running

"""Servers and workers of streams on an empty Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.fixtures import broker, scripts, valkey_broker
from tests.support.streams import Producer, StreamServer, stream_server

__all__ = ["broker", "producer", "scripts", "second", "server", "valkey_broker"]


@pytest.fixture
async def server(valkey_url: str) -> AsyncIterator[StreamServer]:
    """A server with a quick clockwork."""
    async with stream_server(valkey_url) as running:
        yield running


@pytest.fixture
async def second(valkey_url: str, server: StreamServer) -> AsyncIterator[StreamServer]:
    """Another server on the same store."""
    async with stream_server(valkey_url, server_id="s2") as running:
        yield running


@pytest.fixture
async def producer(server: StreamServer) -> AsyncIterator[Producer]:
    """A producer of the first server."""
    async with Producer(server.address) as running:
        yield running

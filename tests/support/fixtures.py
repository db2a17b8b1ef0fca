"""Fixtures that several rooms of tests use; a room's conftest imports those it wants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis

from jobwire_server.store.connection.connect import connect

from tests.support.brokers import Broker, running_broker
from tests.support.scripts import Scripts


@pytest.fixture
async def broker(store_url: str) -> AsyncIterator[Broker]:
    """A router without loops of its own, on an empty store."""
    async with running_broker(store_url) as running:
        # It would have the queues' clocks look as soon as it hears that a test has moved the time.
        await running.parts.announcements.stop()
        yield running


@pytest.fixture
async def valkey_broker(valkey_url: str) -> AsyncIterator[Broker]:
    """The same on Valkey alone, for what does not depend on the engine."""
    async with running_broker(valkey_url) as running:
        await running.parts.announcements.stop()
        yield running


@asynccontextmanager
async def open_scripts(url: str, server_id: str = "s1", **wait: int) -> AsyncIterator[Scripts]:
    """Opens a store for its scripts, which may wait for replicas."""
    connection = connect(url)
    client = redis.Redis.from_url(url)
    try:
        yield Scripts(connection, client, server_id, **wait)
    finally:
        await connection.close()
        client.close()


@pytest.fixture
async def scripts(store_url: str) -> AsyncIterator[Scripts]:
    """The scripts on an empty store, with each engine in tests/store."""
    async with open_scripts(store_url) as opened:
        yield opened

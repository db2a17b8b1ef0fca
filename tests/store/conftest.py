"""The scripts on each of the real stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis

from jobwire_server.store.connect import connect

from tests.support.scripts import Scripts


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
    """The scripts on an empty store, once for each engine."""
    async with open_scripts(store_url) as opened:
        yield opened

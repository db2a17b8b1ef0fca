"""The contract over a real channel, on a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.grpc_servers import Served, served_broker


@pytest.fixture
async def served(valkey_url: str) -> AsyncIterator[Served]:
    """A server on an empty store."""
    async with served_broker(valkey_url) as running:
        yield running

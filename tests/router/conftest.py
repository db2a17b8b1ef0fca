"""A router on each of the real stores."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.brokers import Broker, running_broker


@pytest.fixture
async def broker(store_url: str) -> AsyncIterator[Broker]:
    """A router without loops of its own, on an empty store, once for each engine."""
    async with running_broker(store_url) as running:
        yield running


@pytest.fixture
async def valkey_broker(valkey_url: str) -> AsyncIterator[Broker]:
    """The same on Valkey alone, for what does not depend on the engine."""
    async with running_broker(valkey_url) as running:
        yield running

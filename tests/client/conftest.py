"""A broker to talk to."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator

import pytest

from jobwire import AsyncClient

from tests.cli.support import broker as real_broker
from tests.client.broker import Broker
from tests.client.support import Server


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    """A broker that does as it is told."""
    made = Broker()  # type: ignore[abstract]  # what it lacks is UNIMPLEMENTED
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def client(broker: Broker) -> AsyncIterator[AsyncClient]:
    """A client of that broker."""
    async with AsyncClient(broker.target, timeout_s=10) as made:
        yield made


@pytest.fixture
def broker_address() -> Iterator[str]:
    """The address of a real broker, started for this test."""
    with real_broker() as address:
        yield address


@pytest.fixture
def server() -> Iterator[Server]:
    """A broker to kill and start again."""
    with tempfile.TemporaryDirectory(prefix="jobwire-", dir="/tmp") as folder:
        made = Server(folder)
        yield made
        made.process.terminate()
        made.process.wait(30)

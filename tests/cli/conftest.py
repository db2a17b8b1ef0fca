"""One broker for all tests of the command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import broker, worker


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    """The address of a broker."""
    with broker() as address:
        yield address


@pytest.fixture(scope="module")
def busy_target(target: str) -> Iterator[str]:
    """The same, with a worker."""
    with worker(target, "tests.cli.handlers", Path(__file__).parents[2]):
        yield target

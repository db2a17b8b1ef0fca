"""A few seconds of fuzzing with a fixed seed, and every input that ever failed; `make fuzz` does it
by the hour.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection_pb2,
    reflection_pb2_grpc,
)

from tests.fuzz import ending
from tests.fuzz.calling import Caller
from tests.fuzz.inputs import Entry, read_corpus
from tests.fuzz.judging import judge
from tests.fuzz.known import ENTRIES
from tests.fuzz.report import describe
from tests.fuzz.run import TICK_S, Settings, run
from tests.fuzz.surface import methods
from tests.fuzz.world import World

SEED = 13
CORPUS = sorted(path.stem for path in Path(__file__).with_name("corpus").glob("*.txt"))
"""Read by the tests of it: by all processes of a parallel run it would cost a second."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A server for the whole corpus; what was done to it is checked at the end."""
    with World() as running:
        yield running
        assert ending.end(running) == []


def _entries() -> list[object]:
    known = {
        name: [pytest.mark.xfail(reason=reason, strict=False)] for name, reason in ENTRIES.items()
    }
    return [pytest.param(name, id=name, marks=known.get(name, ())) for name in CORPUS]


@pytest.fixture(scope="module")
def corpus() -> dict[str, Entry]:
    """What once failed, by its name."""
    return read_corpus(Path(__file__).with_name("corpus"))


@pytest.mark.parametrize("name", _entries())
async def test_what_once_failed_does_not_again(
    world: World, corpus: dict[str, Entry], name: str
) -> None:
    entry = corpus[name]
    world.new_defects(quiet=True)
    stalls = world.stalls
    caller = Caller(world.server.address, 1)
    found = []
    for what in entry.inputs:
        found += [(f.kind, f.method, f.text) for f in judge(what, await caller.make(what))]
    await caller.close()
    await asyncio.sleep(TICK_S)
    assert found == []
    assert world.ended is None
    assert world.stalls == stalls
    assert world.new_defects(quiet=True) == []


def test_some_seconds_of_chance_find_nothing() -> None:
    result = run(Settings(SEED, seconds=20, calls=500, lanes=4, cpu_s=5))
    # Other tests fill the machine: a stall counts if it comes again with the same call.
    found = [one for one in result.failures if one.kind != "stall" or one.method]
    assert not found, describe(result)
    # It was no quiet run.
    assert result.messages > 100
    assert len(result.methods) > 30


def test_every_service_of_a_server_is_called(world: World) -> None:
    with grpc.insecure_channel(world.server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]))
    listed = {service.name for service in answer.list_services_response.service}
    assert listed == {name.partition("/")[0] for name in methods()}

"""Targets of names: that can't be resolved, that come to mean other addresses."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from jobwire import AsyncClient, Client, Context, Unavailable, Worker
from jobwire._route import Route
from jobwire.v1 import job_pb2

from tests.cli.support import jobwire
from tests.client.broker import Broker
from tests.support.gateway import Gateway
from tests.support.waiting import eventually

Asked = dict[str, list[str]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A resolver that knows these names, and no other."""
    known: Asked = {}

    def getaddrinfo(host: str, *rest: Any, **more: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, 0)) for number in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_name_that_cannot_be_resolved_is_left_out_and_named_in_the_log(
    broker: Broker, names: Asked, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    names["good.test"] = ["127.0.0.1"]
    target = f"bad.test:50051,good.test:{broker.port}"
    with caplog.at_level(logging.WARNING, "jobwire.client"):
        if kind == "async":
            async with AsyncClient(target, timeout_s=20) as client:
                await client.submit("work")
                await client.submit("work")
        else:
            with Client(target, timeout_s=20) as blocking:
                await asyncio.to_thread(blocking.submit, "work")
                await asyncio.to_thread(blocking.submit, "work")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the name 'bad.test' can't be resolved; continuing without it: Name or service not known"
    ]


async def test_names_that_can_all_not_be_resolved_are_told_and_tried_until_one_can(
    broker: Broker, names: Asked
) -> None:
    target = f"a.test:{broker.port},b.test:{broker.port}"
    async with AsyncClient(target, timeout_s=0.5) as hasty:
        with pytest.raises(Unavailable, match=r"none of the names .* a\.test: Name or service"):
            await hasty.submit("work")
    async with AsyncClient(target, timeout_s=30) as client:
        submitting = asyncio.create_task(client.submit("work"))
        await asyncio.sleep(0)
        names["b.test"] = ["127.0.0.1"]
        await submitting


@pytest.mark.parametrize("transport", ["stream", "unary"])
async def test_a_worker_starts_as_soon_as_one_of_its_names_can_be_resolved(
    broker: Broker, names: Asked, transport: Any
) -> None:
    # The stream asks gRPC, which asks the system: there the second is a number.
    second = f"127.0.0.1:{broker.port}" if transport == "stream" else f"b.test:{broker.port}"
    worker = Worker(f"a.invalid:{broker.port},{second}", transport=transport)
    ran = asyncio.Event()

    @worker.operation("work")
    async def work(context: Context) -> None:
        ran.set()

    starting = asyncio.create_task(worker.start())
    await asyncio.sleep(0.2)
    names["b.test"] = ["127.0.0.1"]
    await starting
    await broker.add("work")
    await asyncio.wait_for(ran.wait(), 20)
    await worker.stop()


async def test_several_names_that_move_are_found_again(broker: Broker, names: Asked) -> None:
    names["a.test"] = names["b.test"] = ["127.0.0.6"]
    target = f"a.test:{broker.port},b.test:{broker.port}"
    async with AsyncClient(target, timeout_s=40) as client:
        async with Gateway(broker.target, broker.port, "127.0.0.6") as old:
            handle = await client.submit("work")
            waiting = asyncio.create_task(handle.result(timeout=60))
            await eventually(lambda: old.streams == 1, "a stream", timeout_s=20)
        names["a.test"] = names["b.test"] = ["127.0.0.1"]
        await client.submit("work")
        job = broker.jobs[handle.id]
        job.state = job_pb2.JOB_STATE_SUCCEEDED
        await broker.touch(job)
        await waiting
    assert len(broker.jobs) == 2


async def test_a_name_that_joins_is_used_without_a_failure(
    broker: Broker, names: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobwire._route.LOOK_ANYWAY_S", 0.05)
    names["a.test"] = ["127.0.0.1"]
    target = f"a.test:{broker.port},b.test:{broker.port}"
    async with (
        Gateway(broker.target, broker.port, "127.0.0.6") as joining,
        AsyncClient(target, timeout_s=20) as client,
    ):
        await client.submit("work")
        names["b.test"] = ["127.0.0.6"]
        connections = joining.connections
        async with asyncio.timeout(20):
            while not joining.connections:
                await client.submit("work")
    assert connections == 0


class Resolver(asyncio.DatagramProtocol):
    """A name server that knows one name, at whichever address it is told."""

    def __init__(self) -> None:
        self.number = "127.0.0.1"
        self.asked = 0

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.DatagramTransport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        end = data.index(b"\0", 12) + 5
        (kind,) = struct.unpack(">H", data[end - 4 : end - 2])
        is_a = kind == 1
        head = data[:2] + struct.pack(">HHHHH", 0x8180, 1, int(is_a), 0, 0)
        answer = struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(self.number)
        self.asked += is_a
        self.transport.sendto(head + data[12:end] + (answer if is_a else b""), address)


@pytest.fixture
async def resolver() -> AsyncIterator[Resolver]:
    made = Resolver()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: made, ("127.0.0.1", 0)
    )
    yield made
    transport.close()


async def test_a_single_name_that_moves_is_found_again_within_seconds(
    broker: Broker, resolver: Resolver
) -> None:
    resolver.number = "127.0.0.6"
    port = resolver.transport.get_extra_info("sockname")[1]
    target = f"dns://127.0.0.1:{port}/jobwire.test:{broker.port}"
    # Within this time, which is half of what gRPC leaves between two questions.
    async with AsyncClient(target, timeout_s=15) as client:
        async with Gateway(broker.target, broker.port, "127.0.0.6"):
            await client.submit("work")
        resolver.number = "127.0.0.1"
        await client.submit("work")
    assert resolver.asked >= 2


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (" , ", "the target is empty"),
        ("a.test:1,b.test", "the address 'b.test' is not HOST:PORT"),
        ("a.test:1,b.test:70000", "the address 'b.test:70000' is not HOST:PORT"),
    ],
)
@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_a_malformed_target_is_refused_when_the_client_is_made(
    kind: Any, target: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        kind(target)


def test_addresses_of_one_family_are_one_target(names: Asked) -> None:
    names["a.test"] = ["127.0.0.2", "127.0.0.1"]
    route = Route("a.test:1,127.0.0.1:1,[::1]:2,127.0.0.9:3")
    route.look()
    assert route.target == "ipv4:127.0.0.1:1,127.0.0.2:1,127.0.0.9:3"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        ("a.test:1,b.test", 2, "the address 'b.test' is not HOST:PORT"),
        ("a.invalid:1,b.invalid:1", 4, "no server answers at a.invalid:1,b.invalid:1"),
    ],
)
def test_the_command_says_what_is_wrong_with_a_target(target: str, code: int, said: str) -> None:
    done = jobwire("get", "default-1", "--target", target, "--timeout", "500ms")
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr

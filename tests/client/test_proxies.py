"""Clients behind proxies: that reset quiet streams, that answer themselves, that are in the way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from jobwire import (
    AccessDenied,
    AsyncClient,
    CallError,
    Job,
    Unavailable,
)
from jobwire._repeat import worth_repeating
from jobwire.errors import call_error
from jobwire.v1 import job_pb2
from jobwire_server.domain.options import BrokerOptions

from tests.client.broker import Broker
from tests.support.gateway import Gateway
from tests.support.waiting import eventually


@pytest.fixture
async def gateway(broker: Broker) -> AsyncIterator[Gateway]:
    """A proxy before that broker."""
    async with Gateway(broker.target) as made:
        yield made


async def finish(broker: Broker, job_id: str) -> None:
    job = broker.jobs[job_id]
    job.state = job_pb2.JOB_STATE_SUCCEEDED
    job.result.json = '"done"'
    await broker.touch(job)


# NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL
@pytest.mark.parametrize("code", [0, 2, 7, 8])
async def test_a_result_is_waited_for_through_streams_that_are_reset(
    broker: Broker, gateway: Gateway, code: int
) -> None:
    async with AsyncClient(gateway.address, timeout_s=10) as client:
        handle = await client.submit("work")
        waiting = asyncio.create_task(handle.result(timeout=30))
        for _ in range(2):
            await eventually(lambda: gateway.streams == 1, "a stream", timeout_s=20)
            gateway.reset_streams(code)
        await eventually(lambda: gateway.streams == 1, "a stream", timeout_s=20)
        await finish(broker, handle.id)
        assert await waiting == "done"
    assert gateway.resets == 2


async def test_a_watch_goes_on_where_it_was_when_its_stream_is_reset(
    broker: Broker, gateway: Gateway
) -> None:
    seen: list[Job] = []
    async with AsyncClient(gateway.address, timeout_s=10) as client:
        handle = await client.submit("work")

        async def watch() -> None:
            seen.extend([job async for job in handle.watch(timeout=30)])

        watching = asyncio.create_task(watch())
        await eventually(lambda: gateway.streams == 1, "a stream", timeout_s=20)
        gateway.reset_streams()
        await eventually(lambda: gateway.streams == 1, "a stream", timeout_s=20)
        await finish(broker, handle.id)
        await watching
    assert [job.revision for job in seen] == sorted({job.revision for job in seen})
    assert seen[-1].state.is_terminal


# A route that is not there, a rule that is not there yet, no upstream, and oddities.
@pytest.mark.parametrize("status", [404, 403, 401, 400, 500, 502, 503, 429])
async def test_a_call_outlasts_a_proxy_that_answers_for_a_while(
    gateway: Gateway, broker: Broker, status: int
) -> None:
    gateway.status = status
    async with AsyncClient(gateway.address, timeout_s=30) as client:
        submitting = asyncio.create_task(client.submit("work"))
        await eventually(lambda: gateway.answered >= 2, "answers", timeout_s=20)
        gateway.status = 0
        handle = await submitting
    assert list(broker.jobs) == [handle.id]


async def test_a_watch_outlasts_a_proxy_that_answers_for_a_while(
    gateway: Gateway, broker: Broker
) -> None:
    async with AsyncClient(gateway.address, timeout_s=10) as client:
        handle = await client.submit("work")
        waiting = asyncio.create_task(handle.result(timeout=30))
        await eventually(lambda: gateway.streams == 1, "a stream", timeout_s=20)
        gateway.status = 404
        gateway.reset_streams()
        await eventually(lambda: gateway.answered >= 2, "answers", timeout_s=20)
        gateway.status = 0
        await finish(broker, handle.id)
        assert await waiting == "done"


async def test_a_proxy_that_forbids_for_longer_than_the_call_may_take_is_told(
    gateway: Gateway,
) -> None:
    gateway.status = 403
    async with AsyncClient(gateway.address, timeout_s=0.5) as client:
        with pytest.raises(AccessDenied):
            await client.submit("work")
    assert gateway.answered >= 2


async def test_a_method_that_a_server_lacks_is_told_at_once(
    broker: Broker, client: AsyncClient
) -> None:
    with pytest.raises(CallError) as raised:
        await client.create_schedule("nightly", "work", every=60)
    assert raised.value.code is grpc.StatusCode.UNIMPLEMENTED


STATUSES = list(grpc.StatusCode)
FROM_BROKER = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
FROM_OTHERS = FROM_BROKER | {
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
}


@pytest.mark.parametrize("status", STATUSES)
def test_what_is_repeated_depends_on_who_said_it(status: grpc.StatusCode) -> None:
    assert worth_repeating(call_error(status, "no")) is (status in FROM_OTHERS)
    assert worth_repeating(call_error(status, "no", reason="SAID")) is (status in FROM_BROKER)


@pytest.mark.parametrize(
    "words",
    [
        "Method not found!",
        "CLIENT: Received message larger than max (70000000 vs. 67108864)",
        "Exception deserializing response!",
    ],
)
def test_what_grpc_says_of_itself_is_not_repeated(words: str) -> None:
    for status in STATUSES:
        if status is not grpc.StatusCode.UNAVAILABLE:
            assert not worth_repeating(call_error(status, words))


async def connect_proxy() -> tuple[asyncio.Server, str, list[str]]:
    """An HTTP proxy that takes CONNECT, and what it was asked for."""
    asked: list[str] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode()
        asked.append(line)
        host, _, port = line.split()[1].rpartition(":")
        try:
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(
            pump(reader, up_writer), pump(up_reader, writer), return_exceptions=True
        )

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


@pytest.fixture
async def http_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[str, list[str]]]:
    """Its address, and what it was asked for; no proxy is in the environment."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server, address, asked = await connect_proxy()
    yield address, asked
    server.close()


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
@pytest.mark.parametrize("spelt", ["{0}", "localhost:{1}", "{0},{0}"])
async def test_a_proxy_in_the_environment_is_not_asked_for_loopback(
    broker: Broker,
    http_proxy: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    spelt: str,
) -> None:
    address, asked = http_proxy
    monkeypatch.setenv(variable, address)
    target = spelt.format(broker.target, broker.port)
    async with AsyncClient(target, timeout_s=20) as client:
        await client.submit("work")
    assert asked == []


async def test_a_proxy_for_the_web_is_not_asked_for_a_private_address(
    http_proxy: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", http_proxy[0])
    monkeypatch.setenv("https_proxy", http_proxy[0])
    async with AsyncClient("jobwire.invalid:50051", timeout_s=0.5) as client:
        with pytest.raises(Unavailable):
            await client.submit("work")
    assert http_proxy[1] == []


async def test_grpc_proxy_is_asked_for_what_is_not_loopback(
    http_proxy: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("grpc_proxy", http_proxy[0])
    async with AsyncClient("jobwire.invalid:50051", timeout_s=1) as client:
        with pytest.raises(Unavailable):
            await client.submit("work")
    assert http_proxy[1][0] == "CONNECT jobwire.invalid:50051 HTTP/1.1"


async def test_a_proxy_that_is_asked_for_is_used_for_every_address(
    broker: Broker, http_proxy: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBWIRE_HTTP_PROXY", http_proxy[0])
    async with AsyncClient(broker.target, timeout_s=20) as client:
        await client.submit("work")
    assert {*http_proxy[1]} == {f"CONNECT {broker.target} HTTP/1.1"}
    with pytest.raises(ValueError, match="JOBWIRE_HTTP_PROXY the target must be one address"):
        AsyncClient(f"{broker.target},{broker.target}")


def test_bookmarks_come_before_proxies_take_a_stream_for_dead() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    (said,) = re.findall(r"longer than the bookmark interval \((\d+) seconds\)", text)
    assert BrokerOptions().bookmark_ms == int(said) * 1000 < 30_000

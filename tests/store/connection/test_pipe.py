"""Script calls that share a connection: each gets its own answer, whoever else goes away."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import hiredis
import pytest
import redis
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import (
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from jobwire_server.store.connection.connect import Connection, connect
from jobwire_server.store.connection.pipe import Pipe
from jobwire_server.store.connection.sending import TcpConnection

from tests.support.proxy import Proxy
from tests.support.stores import StoreProcess
from tests.support.waiting import eventually

ECHO = "return ARGV[1]"


def echo(connection: Connection, text: str, script: str = ECHO) -> Awaitable[Any]:
    """Has the store answer a text."""
    return connection.run_script(("EVAL", script, 1, "jw:{q}:", text), reads=False)


async def connections(connection: Connection) -> int:
    """How many connections the store has, but for the one that asks."""
    clients: Any = connection.client
    return len(await clients.client_list()) - 1


@pytest.fixture
async def connection(valkey_url: str) -> AsyncIterator[Connection]:
    """A store that is not opened yet."""
    connection = connect(valkey_url)
    yield connection
    await connection.close()


async def test_many_calls_share_a_connection_and_each_gets_its_answer(
    connection: Connection,
) -> None:
    await echo(connection, "first")
    before = await connections(connection)
    texts = [f"{number}" * (number * 37 % 5_000) for number in range(300)]
    answers = await asyncio.gather(*(echo(connection, text) for text in texts))
    assert answers == [text.encode() for text in texts]
    assert await connections(connection) == before


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from(["answered", "refused", "leaves"]),
            st.integers(min_value=0, max_value=3),
            st.sampled_from([0, 10, 70_000]),
        ),
        max_size=25,
    )
)
async def test_whoever_leaves_each_who_stays_gets_the_own_answer(
    valkey_url: str, calls: list[tuple[str, int, int]]
) -> None:
    connection = connect(valkey_url)

    async def call(number: int, size: int, *, fails: bool) -> bytes:
        script = "return redis.error_reply('ERR ' .. ARGV[1])" if fails else ECHO
        answer: bytes = await echo(connection, f"{number}".zfill(size), script)
        return answer

    tasks = []
    for number, (fate, turns, size) in enumerate(calls):
        task = asyncio.create_task(call(number, size, fails=fate == "refused"))
        tasks.append(task)
        for _ in range(turns):
            await asyncio.sleep(0)
        if fate == "leaves":
            task.cancel()
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    for number, (answer, (fate, _, size)) in enumerate(zip(answers, calls, strict=True)):
        text = f"{number}".zfill(size)
        match fate:
            case "answered":
                assert answer == text.encode()
            case "refused":
                assert isinstance(answer, ResponseError)
                assert text in str(answer)
            case _:
                assert isinstance(answer, asyncio.CancelledError) or answer == text.encode()
    await connection.close()


async def test_what_the_store_refuses_has_the_class_that_the_client_gives_it(
    connection: Connection, valkey_url: str
) -> None:
    words = ("EVALSHA", "0" * 40, 1, "k")
    with pytest.raises(NoScriptError):
        await connection.run_script(words, reads=True)
    for reply, kind in (
        ("OOM command not allowed", OutOfMemoryError),
        ("NOPERM no permissions", NoPermissionError),
        ("WHATEVER it is", ResponseError),
    ):
        with pytest.raises(kind) as raised:
            await echo(connection, reply, "return redis.error_reply(ARGV[1])")
        with redis.Redis.from_url(valkey_url) as client:
            with pytest.raises(kind) as same:
                client.eval("return redis.error_reply(ARGV[1])", 1, "k", reply)
            assert str(raised.value) == str(same.value)
    assert await echo(connection, "on") == b"on"


async def test_a_replica_is_left_for_whoever_is_the_primary(own_store: StoreProcess) -> None:
    connection = connect(own_store.url)
    await echo(connection, "on")
    before = await _ids(own_store)
    write = "return redis.call('SET', KEYS[1], ARGV[1])"
    with own_store.client() as client:
        client.config_set("min-replicas-to-write", 0)
        client.replicaof("127.0.0.1", "1")
        with pytest.raises(ReadOnlyError):
            await echo(connection, "x", write)
        client.replicaof("NO", "ONE")
    assert await echo(connection, "y", write) == b"OK"
    assert not before & await _ids(own_store)
    await connection.close()


async def _ids(store: StoreProcess) -> set[str]:
    with store.client() as client:
        return {row["id"] for row in client.client_list() if row["cmd"] == "eval"}


async def test_when_the_connection_breaks_all_calls_fail_and_the_next_opens_another(
    own_store: StoreProcess,
) -> None:
    connection = connect(own_store.url)
    await echo(connection, "on")
    own_store.pause()
    calls = [asyncio.ensure_future(echo(connection, "lost")) for _ in range(3)]
    calls[1].cancel()
    await asyncio.sleep(0)
    own_store.kill()
    async with asyncio.timeout(2):
        answers = await asyncio.gather(*calls, return_exceptions=True)
    kinds = [RedisConnectionError, asyncio.CancelledError, RedisConnectionError]
    assert [type(answer) for answer in answers] == kinds
    with pytest.raises(RedisConnectionError):
        await echo(connection, "away")
    own_store.start()
    assert await echo(connection, "back") == b"back"
    await connection.close()


async def test_a_connection_that_closed_while_nobody_called_is_opened_again(
    connection: Connection,
) -> None:
    client: Any = connection.client
    for _ in range(3):
        assert await echo(connection, "on") == b"on"
        await client.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.sleep(0.02)


async def test_silence_fails_all_calls_as_long_as_a_read_may_take(own_store: StoreProcess) -> None:
    connection = connect(f"{own_store.url}?socket_timeout=0.3")
    await echo(connection, "on")
    own_store.pause()
    try:
        began = asyncio.get_running_loop().time()
        calls = [asyncio.ensure_future(echo(connection, "lost")) for _ in range(3)]
        async with asyncio.timeout(2):
            answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [RedisTimeoutError] * 3
        assert asyncio.get_running_loop().time() - began >= 0.3
        # The next one can't open a connection either.
        with pytest.raises((RedisTimeoutError, RedisConnectionError)):
            await echo(connection, "lost")
    finally:
        own_store.resume()
    assert await echo(connection, "back") == b"back"
    await connection.close()


async def _answer_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A store that takes its time for each ECHO."""
    asked = hiredis.Reader()
    while data := await reader.read(1 << 16):
        asked.feed(data)
        while (words := asked.gets()) is not False:
            if words[0] == b"ECHO":
                await asyncio.sleep(0.06)
            writer.write(b"+%s\r\n" % words[-1])
    writer.close()


async def test_answers_that_keep_coming_are_no_silence() -> None:
    async with await asyncio.start_server(_answer_slowly, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        pipe = Pipe(lambda: TcpConnection(host=host, port=port, socket_timeout=0.3))
        # The last answers come later than one may, but not so long after the ones before.
        texts = [f"{number}".encode() for number in range(8)]
        assert await asyncio.gather(*(pipe.send(("ECHO", text)) for text in texts)) == texts
        await pipe.close()


async def test_a_connection_that_rested_is_tried_and_given_up_before_it_is_needed(
    valkey: StoreProcess,
) -> None:
    async with Proxy(valkey.url.removeprefix("unix://")) as proxy:
        host, port = proxy.address.split(":")
        pipe = Pipe(
            lambda: TcpConnection(
                host=host, port=int(port), socket_timeout=0.2, health_check_interval=0.1
            )
        )
        assert await pipe.send(("ECHO", "on")) == b"on"
        proxy.swallow("up", "down")
        # No call is under way: what finds the connection deaf is the trial.
        await eventually(lambda: not _lives(), "the deaf connection is given up")
        assert await pipe.send(("ECHO", "back")) == b"back"
        assert proxy.accepted == 2
        await pipe.close()


def _lives() -> bool:
    """Some pipe has a connection."""
    return any(task.get_name() == "store-pipe" for task in asyncio.all_tasks())


async def test_calls_that_come_while_the_connection_opens_wait_for_it_and_may_leave(
    valkey: StoreProcess,
) -> None:
    async with Proxy(valkey.url.removeprefix("unix://")) as proxy:
        connection = connect(f"redis://{proxy.address}")
        proxy.hold()
        calls = [asyncio.ensure_future(echo(connection, f"{number}")) for number in range(3)]
        await eventually(lambda: bool(proxy.held), "the greeting is on its way")
        calls[0].cancel()
        proxy.go_on()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert answers[1:] == [b"1", b"2"]
        assert proxy.accepted == 1
        await connection.close()


async def test_closing_fails_what_is_under_way_and_leaves_no_task(valkey: StoreProcess) -> None:
    async with Proxy(valkey.url.removeprefix("unix://")) as proxy:
        for opened in (False, True):
            connection = connect(f"redis://{proxy.address}")
            if opened:
                await echo(connection, "on")
            proxy.hold()
            call = asyncio.ensure_future(echo(connection, "lost"))
            await eventually(lambda: bool(proxy.held), "something is under way")
            await connection.close()
            with pytest.raises(RedisConnectionError):
                await call
            assert not _lives()
            proxy.go_on()


async def test_no_answer_waits_behind_one_to_a_reader(valkey: StoreProcess) -> None:
    async with Proxy(valkey.url.removeprefix("unix://")) as proxy:
        connection = connect(f"redis://{proxy.address}")

        def read(text: str) -> Awaitable[Any]:
            return connection.run_script(("EVAL", ECHO, 1, "k", text), reads=True)

        assert await read("on") == b"on"
        assert proxy.accepted == 1
        proxy.swallow("down")
        large = asyncio.ensure_future(read("large"))
        await asyncio.sleep(0)
        assert await read("small") == b"small"
        assert await echo(connection, "written") == b"written"
        assert proxy.accepted == 3
        assert not large.done()
        large.cancel()
        await connection.close()


TLS = pytest.param(
    "tls",
    marks=[
        pytest.mark.processes,
        pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate"),
    ],
)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.mark.parametrize("loop", [*LOOPS])
@pytest.mark.parametrize("form", ["unix", "tcp", TLS, "protocol=3", "user"])
def test_every_form_of_url_works_on_every_loop(
    valkey: StoreProcess, tmp_path: Path, form: str, loop: str
) -> None:
    socket = valkey.url.removeprefix("unix://")

    async def check() -> None:
        tls = _tls(tmp_path) if form == "tls" else None
        async with Proxy(socket, tls=tls) as proxy:
            url = {
                "unix": f"unix://{socket}?db=3",
                "tcp": f"redis://{proxy.address}/3",
                "tls": f"rediss://{proxy.address}/3?ssl_ca_certs={tmp_path}/pem",
                "protocol=3": f"redis://{proxy.address}/3?protocol=3",
                "user": f"redis://pipe:s%40cret@{proxy.address}/3?client_name=me",
            }[form]
            connection = connect(url)
            try:
                await _check_form(connection)
            finally:
                await connection.close()

    with valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "pipe", "on", ">s@cret", "~*", "&*", "+@all")
        try:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                runner.run(check())
        finally:
            client.execute_command("ACL", "DELUSER", "pipe")


async def _check_form(connection: Connection) -> None:
    client: Any = connection.client
    who = await connection.run_script(
        ("EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", 1, "k", "x" * 300_000), reads=False
    )
    assert who == b"OK"
    # The same database, and the same user, as the client has.
    assert len(await client.get("k")) == 300_000
    size = await connection.run_script(
        ("EVAL", "return redis.call('GET', KEYS[1])", 1, "k"), reads=True
    )
    assert len(size) == 300_000
    await client.delete("k")


def _tls(folder: Path) -> ssl.SSLContext:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *(
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=store",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ),
            *("-keyout", folder / "key", "-out", folder / "pem"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pem", folder / "key")
    return context

"""What handlers write out, from the call in the handler to the watcher, with a real broker."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Literal

import pytest

from jobwire import (
    AsyncClient,
    Client,
    Context,
    JobFailed,
    JobState,
    OutputChunk,
    OutputFull,
    OutputPolicy,
    OutputTrimmed,
    RetryPolicy,
    Worker,
)
from jobwire.output import OutputLog

from tests.client import handlers
from tests.client.support import Server, worker_at

pytestmark = pytest.mark.processes

Transport = Literal["stream", "unary"]


@pytest.mark.parametrize("transport", ["stream", "unary"])
async def test_a_watcher_reads_every_byte_in_order(
    broker_address: str, transport: Transport
) -> None:
    pieces = [f"piece {number} äöü\n" for number in range(3000)] + ["x" * 200_000]

    def talk(context: Context) -> None:
        for number, piece in enumerate(pieces):
            context.output(piece, "stderr" if number % 7 == 0 else "stdout")

    async with worker_at(broker_address, transport, talk=talk), AsyncClient(broker_address) as c:
        handle = await c.submit("talk")
        live = [text async for text in handle.output_text()]
        assert "".join(live) == "".join(pieces)
        wanted = "".join(pieces[0::7])
        assert b"".join([d async for d in handle.output_bytes("stderr")]).decode() == wanted
        lines = [line async for line in handle.output()]
        assert sorted(lines) == sorted("".join(pieces).splitlines())


async def test_a_watch_goes_on_behind_any_piece(broker_address: str) -> None:
    async def talk(context: Context) -> None:
        for number in range(40):
            context.output(f"{number},", "tokens")
            context.output(b"\0", "noise")
            await asyncio.sleep(0)

    async with worker_at(broker_address, "stream", talk=talk), AsyncClient(broker_address) as c:
        handle = await c.submit("talk")
        await handle.result(timeout=20)
        whole = [chunk async for chunk in handle.chunks()]
        for at, chunk in enumerate(whole):
            rest = [c async for c in handle.chunks(start=chunk.after)]
            assert b"".join(c.data for c in rest) == b"".join(c.data for c in whole[at + 1 :])


async def test_output_comes_before_the_last_state(broker_address: str) -> None:
    async def talk(context: Context) -> str:
        context.output("last words")
        return "done"

    async with worker_at(broker_address, "stream", talk=talk), AsyncClient(broker_address) as c:
        events = [event async for event in await c.run("talk", timeout=20)]
        assert isinstance(events[-2], OutputChunk)
        assert events[-2].text == "last words"
        assert events[-1].state is JobState.SUCCEEDED  # type: ignore[union-attr]


async def test_a_process_logs_prints_and_writes(broker_address: str) -> None:
    worker = Worker(broker_address, concurrency=2)
    worker.operation("speak", run="process")(handlers.speak)
    async with worker, AsyncClient(broker_address) as client:
        handle = await client.submit("speak", 3)
        assert await handle.result(timeout=40) == "spoken"
        assert [line async for line in handle.output("stdout")] == ["0", "1", "2"]
        assert b"".join([data async for data in handle.output_bytes("raw")]) == bytes(100_000)
        logged = [line async for line in handle.output("log")]
        assert len(logged) == 1
        assert logged[0].endswith("speaking")


@pytest.mark.parametrize("transport", ["stream", "unary"])
async def test_a_full_output_fails_the_handler_that_does_not_ignore_it(
    broker_address: str, transport: Transport
) -> None:
    def talk(context: Context) -> None:
        for _ in range(1000):
            context.output("x" * 1000, ignore_full=context.payload)
            if context.output_full and context.payload:
                return
            context.wait_cancelled(0.01)

    async with worker_at(broker_address, transport, talk=talk), AsyncClient(broker_address) as c:
        once = RetryPolicy(max_attempts=1)
        options: Any = {"output": OutputPolicy(max_bytes=10_000), "retry": once}
        strict = await c.submit("talk", False, **options)
        with pytest.raises(JobFailed, match="OutputFull"):
            await strict.result(timeout=20)
        assert 0 < (await strict.get()).output_bytes <= 10_000
        await (await c.submit("talk", True, **options)).result(timeout=20)


async def test_trimmed_output_is_said_or_skipped(broker_address: str) -> None:
    async def talk(context: Context) -> None:
        for number in range(100):
            context.output(f"{number:05}" * 200)
            await asyncio.sleep(0.001)

    async with worker_at(broker_address, "stream", talk=talk), AsyncClient(broker_address) as c:
        handle = await c.submit("talk", output=OutputPolicy(max_bytes=20_000, trim=True))
        await handle.result(timeout=20)
        start = OutputChunk(1, 0, "stdout", b"00000").after
        with pytest.raises(OutputTrimmed):
            async for _ in handle.chunks(start=start):
                pass
        rest = b"".join([c.data async for c in handle.chunks(start=start, skip_trimmed=True)])
        assert rest.endswith(b"00099")
        assert len(rest) <= 20_000


async def test_prints_of_handlers_beside_each_other_are_kept_apart(broker_address: str) -> None:
    def talk(context: Context) -> None:
        with context.capture_stdout():
            for number in range(50):
                print(context.payload, number)

    async with worker_at(broker_address, "stream", talk=talk), AsyncClient(broker_address) as c:
        jobs = [await c.submit("talk", name) for name in "abcd"]
        for name, job in zip("abcd", jobs, strict=True):
            lines = [line async for line in job.output()]
            assert lines == [f"{name} {number}" for number in range(50)]


@pytest.mark.parametrize("transport", ["stream", "unary"])
async def test_no_byte_is_missed_or_doubled_when_the_server_is_killed(
    server: Server, transport: Transport
) -> None:
    async def talk(context: Context) -> str:
        for number in range(400):
            context.output(f"{number}\n")
            await asyncio.sleep(0.005)
        return "done"

    worker = worker_at(server.address, transport, talk=talk)
    async with worker, AsyncClient(server.address, reconnect_s=30) as client:
        lines: list[int] = []
        last = None
        kept = ""
        async for event in await client.run("talk", timeout=60):
            if not isinstance(event, OutputChunk):
                last = event
                continue
            before = len(lines)
            kept += event.text
            *whole, kept = kept.split("\n")
            lines += [int(line) for line in whole]
            if before < 100 <= len(lines):
                await asyncio.to_thread(server.kill)
                server.start()
        assert lines == list(range(400))
        assert last is not None
        assert (last.state, last.attempt) == (JobState.SUCCEEDED, 1)


def test_the_blocking_client_reads_output_too(broker_address: str) -> None:
    async def work() -> None:
        async def talk(context: Context) -> None:
            context.logger.info("hello")

        def read() -> list[str]:
            with Client(broker_address) as client:
                return list(client.submit("talk").output("log", timeout=20))

        async with worker_at(broker_address, "stream", talk=talk):
            lines = await asyncio.to_thread(read)
        assert len(lines) == 1
        assert lines[0].endswith("hello")

    asyncio.run(work())


def test_a_handler_is_tested_without_a_broker() -> None:
    context = Context.for_test()
    context.output("a")
    context.output(b"b", "raw")
    with context.capture_stdout():
        print("printed")
    context.logger.warning("logged")
    assert context.outputs[:2] == [("stdout", "a"), ("raw", b"b")]
    assert context.output_text() == "aprinted\n"
    assert context.output_text("log").endswith("logged\n")
    context.fill_output()
    context.output("dropped", ignore_full=True)
    with pytest.raises(OutputFull):
        context.output("refused")
    with pytest.raises(ValueError, match="channel"):
        context.output("x", "no channel")
    assert logging.getLogger("jobwire.job").handlers == []


def test_text_is_cut_between_characters_and_sent_again_with_the_same_offsets() -> None:
    log = OutputLog(lambda urgent: None, lambda: False)
    log.write(b"x" + "€".encode() * 50_000, "stdout", is_text=True)
    first = log.take()
    log.again()
    assert log.take() == first
    assert "".join(chunk.text for chunk in first) == "x" + "€" * 50_000
    assert all(len(chunk.text.encode()) <= 65536 for chunk in first)
    log.recorded()
    log.write(b"more", "stdout", is_text=True)
    assert [chunk.offset for chunk in log.take()] == [150_001]

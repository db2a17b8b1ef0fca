"""A producer that does one thing at a time: `python -m benchmarks.singly KIND TARGET`.

KIND is `sdk` or `sdk-sync`, the SDK's clients, or `bare` or `bare-sync`, gRPC's own stubs, which
call the echo. Each line of its input says what to do: `submit COUNT`, `call COUNT IN_FLIGHT`,
`paced COUNT RATE`, or `spaced COUNT PAUSE_S`, which submits as well; the bare ones make a round
trip whichever it is. It answers how long each took, and when it did it all.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from itertools import count as numbers
from time import monotonic_ns, perf_counter
from typing import Any, Protocol

import grpc
import uvloop

from jobwire import AsyncClient, Client
from jobwire.v1 import job_service_pb2

from benchmarks import jobs
from benchmarks.echo import METHOD
from benchmarks.figures import quantile
from benchmarks.parts import say

RESULT_DEADLINE_S = 60.0
RESULT = b"done"
COLLECTORS = 50


class Timed:
    """How long each of some calls took."""

    def __init__(self) -> None:
        self._took: list[float] = []
        self._began = perf_counter()
        self._began_ns = monotonic_ns()

    def add(self, took_s: float) -> None:
        """Notes one."""
        self._took.append(took_s)

    def answer(self) -> dict[str, Any]:
        """Returns what the benchmark is told once the last has ended."""
        took_s = perf_counter() - self._began
        p50, p99 = (quantile(self._took, fraction) * 1e6 for fraction in (0.5, 0.99))
        return {
            "rate": len(self._took) / took_s,
            "p50_us": p50,
            "p99_us": p99,
            "began": self._began_ns,
            "ended": monotonic_ns(),
        }


class Side(Protocol):
    """What is measured, whichever it is."""

    async def submit(self) -> None:
        """Submits a job."""

    async def call(self) -> None:
        """Submits a job and awaits its result."""

    async def paced(self, count: int, rate: float) -> dict[str, Any]:
        """Submits jobs at a rate; answers when their handlers started."""


class Sdk:
    """The SDK's client in an event loop."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._payload = _payloads()
        # Where an earlier release is measured, it is not there.
        self._call = getattr(client, "call", None)

    async def submit(self) -> None:
        """Submits a job."""
        await self._client.submit(jobs.OPERATION, next(self._payload))

    async def call(self) -> None:
        """Submits a job and awaits its result."""
        if self._call is not None:
            result = await self._call(jobs.OPERATION, next(self._payload))
        else:
            handle = await self._client.submit(jobs.OPERATION, next(self._payload))
            result = await handle.result(timeout=RESULT_DEADLINE_S)
        _check_result(result)

    async def paced(self, count: int, rate: float) -> dict[str, Any]:
        """Submits jobs at a rate to a worker whose results say when it started them."""
        handles: list[tuple[int, Any]] = []
        took: list[float] = []

        async def send(number: int) -> None:
            payload = next(self._payload)
            began = monotonic_ns()
            handles.append((began, await self._client.submit(jobs.OPERATION, payload)))

        async def collect(number: int) -> None:
            began, handle = handles[number]
            started = int.from_bytes(await handle.result(timeout=RESULT_DEADLINE_S), "big")
            took.append((started - began) / 1e9)

        await jobs.paced(count, rate, send)
        await jobs.each(count, COLLECTORS, collect)
        return {"took_s": took}


class SyncSdk:
    """The SDK's client for threads."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._payload = _payloads()
        self._call = getattr(client, "call", None)

    def submit(self) -> None:
        """Submits a job."""
        self._client.submit(jobs.OPERATION, next(self._payload))

    def call(self) -> None:
        """Submits a job and awaits its result."""
        if self._call is not None:
            result = self._call(jobs.OPERATION, next(self._payload))
        else:
            handle = self._client.submit(jobs.OPERATION, next(self._payload))
            result = handle.result(timeout=RESULT_DEADLINE_S)
        _check_result(result)


class Bare:
    """The bare stub in an event loop."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = _stub(channel)
        self._requests = _requests()

    async def submit(self) -> None:
        """Makes a round trip."""
        _check_answer(await self._stub(next(self._requests)))

    call = submit

    async def paced(self, count: int, rate: float) -> dict[str, Any]:
        """Makes round trips at a rate; answers how long each took."""
        took: list[float] = []

        async def send(number: int) -> None:
            began = perf_counter()
            await self.submit()
            took.append(perf_counter() - began)

        await jobs.paced(count, rate, send)
        return {"took_s": took}


class SyncBare:
    """The bare stub for threads."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = _stub(channel)
        self._requests = _requests()

    def submit(self) -> None:
        """Makes a round trip."""
        _check_answer(self._stub(next(self._requests)))

    call = submit


def _stub(channel: Any) -> Any:
    return channel.unary_unary(
        METHOD,
        request_serializer=job_service_pb2.SubmitJobRequest.SerializeToString,
        response_deserializer=job_service_pb2.SubmitJobResponse.FromString,
    )


def _payloads() -> Iterator[bytes]:
    made = [jobs.payload() for _ in range(64)]
    return (made[number % 64] for number in numbers())


def _requests() -> Iterator[job_service_pb2.SubmitJobRequest]:
    made = [jobs.request() for _ in range(64)]
    return (made[number % 64] for number in numbers())


def _check_result(result: object) -> None:
    if result != RESULT:
        raise RuntimeError(f"a job's result is {result!r}")


def _check_answer(answer: job_service_pb2.SubmitJobResponse) -> None:
    if not answer.job_id:
        raise RuntimeError("the echo answered nothing")


@contextlib.asynccontextmanager
async def _open(kind: str, target: str) -> AsyncIterator[Side]:
    if kind == "sdk":
        async with AsyncClient(target) as client:
            yield Sdk(client)
    else:
        async with grpc.aio.insecure_channel(target) as channel:
            yield Bare(channel)


async def produce(kind: str, target: str) -> None:
    """Does as it is told until its input ends."""
    loop = asyncio.get_running_loop()
    async with _open(kind, target) as side:
        say({"ready": True})
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            verb, count, *more = line.split()
            if verb == "paced":
                say(await side.paced(int(count), float(more[0])))
            elif verb == "spaced":
                say(await _timed(side.submit, partial(_spaced, int(count), float(more[0]))))
            else:
                call = side.submit if verb == "submit" else side.call
                width = int(more[0]) if more else 1
                say(await _timed(call, partial(jobs.each, int(count), width)))


async def _timed(
    call: Callable[[], Awaitable[None]], all_of: Callable[..., Awaitable[None]]
) -> dict[str, Any]:
    timed = Timed()

    async def one(number: int) -> None:
        began = perf_counter()
        await call()
        timed.add(perf_counter() - began)

    await all_of(one)
    return timed.answer()


async def _spaced(count: int, pause_s: float, call: Callable[[int], Awaitable[None]]) -> None:
    for number in range(count):
        await call(number)
        await asyncio.sleep(pause_s)


def produce_sync(kind: str, target: str) -> None:
    """The same without an event loop; one thing at a time only."""
    side: SyncSdk | SyncBare
    with contextlib.ExitStack() as stack:
        if kind == "sdk-sync":
            side = SyncSdk(stack.enter_context(Client(target)))
        else:
            side = SyncBare(stack.enter_context(grpc.insecure_channel(target)))
        say({"ready": True})
        while line := sys.stdin.readline():
            verb, count, *_ = line.split()
            call = side.submit if verb == "submit" else side.call
            timed = Timed()
            for _ in range(int(count)):
                began = perf_counter()
                call()
                timed.add(perf_counter() - began)
            say(timed.answer())


if __name__ == "__main__":
    chosen, address = sys.argv[1:]
    if chosen.endswith("-sync"):
        produce_sync(chosen, address)
    else:
        uvloop.run(produce(chosen, address))

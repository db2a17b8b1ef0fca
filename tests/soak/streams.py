"""Opens worker streams by the thousand and breaks them off in every way, against one server.

    python -m tests.soak.streams --streams 20000

prints the memory of the server's process along the way; then how the streams ended, what was open
at the end, and defects in the server's log.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from jobwire.v1.worker_service_pb2 import (
    Attach,
    Detach,
    Heartbeat,
    LeaseRef,
    WorkerSpec,
    WorkRequest,
)
from jobwire.v1.worker_service_pb2_grpc import WorkerServiceStub

from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess
from tests.support.streams import Producer

AT_ONCE = 100
"""Streams that are open at one time, on a connection of their own each batch."""
JOBS = 200
"""Waiting all the while, so that many a stream breaks with assignments on it."""
METHOD = "/jobwire.v1.WorkerService/Work"
_LOCAL = (("grpc.use_local_subchannel_pool", 1),)
FLAGS = (
    *("--heartbeat-interval", "500ms", "--worker-timeout", "2s", "--reconnect-window", "500ms"),
    *("--claim-timeout", "1s", "--lease", "60s", "--max-crashes", "1000"),
)


def first_frame(number: int) -> WorkRequest:
    """Returns a proper attachment of a worker of its own."""
    spec = WorkerSpec(worker_id=f"soak-{os.getpid()}-{number}", operations=["work"])
    return WorkRequest(attach=Attach(worker=spec, instance_id="i", credits=number % 4))


async def _attached(stub: Any, number: int) -> Any:
    call = stub.Work()
    await call.write(first_frame(number))
    await call.read()
    return call


async def _to_its_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def cancelled(stub: Any, number: int) -> None:
    """Attached, then cancelled."""
    (await _attached(stub, number)).cancel()


async def cancelled_in_the_middle(stub: Any, number: int) -> None:
    """Cancelled while it attaches."""
    call = stub.Work()
    await call.write(first_frame(number))
    await asyncio.sleep(random.random() * 0.004)
    call.cancel()


async def cancelled_while_writing(stub: Any, number: int) -> None:
    """Cancelled with frames under way in both directions."""
    call = await _attached(stub, number)
    ack = LeaseRef(job_id="default-01m83a0kes6dmbq1d05hcd8awx", fencing_token=1)
    for _ in range(5):
        await call.write(WorkRequest(acks=[ack] * 100))
    call.cancel()


async def out_of_time(stub: Any, number: int) -> None:
    """With a deadline that passes."""
    call = stub.Work(timeout=0.05)
    await call.write(first_frame(number))
    await _to_its_end(call)


async def never_attached(stub: Any, number: int) -> None:
    """Opened, and nothing said until its deadline."""
    await _to_its_end(stub.Work(timeout=0.02))


async def half_closed(stub: Any, number: int) -> None:
    """Attached, then closed from this side."""
    call = await _attached(stub, number)
    await call.done_writing()
    await _to_its_end(call)


async def half_closed_at_once(stub: Any, number: int) -> None:
    """Closed from this side before anything was said."""
    call = stub.Work()
    await call.done_writing()
    await _to_its_end(call)


async def attached_twice(stub: Any, number: int) -> None:
    """Ended by the server for a frame against the rules."""
    call = await _attached(stub, number)
    await call.write(first_frame(number))
    await _to_its_end(call)


async def wrong_from_the_start(stub: Any, number: int) -> None:
    """Refused by the server."""
    call = stub.Work()
    await call.write(WorkRequest(heartbeat=Heartbeat()))
    await _to_its_end(call)


async def superseded(stub: Any, number: int) -> None:
    """Ended by the server for another stream of the worker."""
    older, newer = await _attached(stub, number), await _attached(stub, number)
    try:
        await _to_its_end(older)
    finally:
        newer.cancel()


async def left_alone(stub: Any, number: int) -> None:
    """Attached, and still there when the channel is closed."""
    await _attached(stub, number)


async def said_goodbye(stub: Any, number: int) -> None:
    """Detached as it should be."""
    call = await _attached(stub, number)
    await call.write(WorkRequest(detach=Detach()))
    await _to_its_end(call)


WAYS: tuple[Callable[[Any, int], Awaitable[None]], ...] = (
    cancelled,
    cancelled_in_the_middle,
    cancelled_while_writing,
    out_of_time,
    never_attached,
    half_closed,
    half_closed_at_once,
    attached_twice,
    wrong_from_the_start,
    superseded,
    left_alone,
    said_goodbye,
)


async def batch(address: str, begin: int, count: int) -> Counter[str]:
    """Opens streams on one new connection, each in its way; returns how they ended."""
    ends: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(address, options=_LOCAL) as channel:
        stub = WorkerServiceStub(channel)

        async def one(number: int) -> None:
            way = WAYS[number % len(WAYS)]
            try:
                async with asyncio.timeout(30):
                    await way(stub, number)
                end = "as this side wished"
            except grpc.aio.AioRpcError as error:
                end = error.code().name
            except asyncio.InvalidStateError:
                end = "over before a write"
            ends[f"{way.__name__}: {end}"] += 1

        await asyncio.gather(*(one(begin + at) for at in range(count)))
    return ends


async def hold_until_killed(address: str, begin: int, count: int) -> None:
    """Attaches so many and says so on standard output; what comes then is a kill."""
    async with grpc.aio.insecure_channel(address, options=_LOCAL) as channel:
        stub = WorkerServiceStub(channel)
        calls = [await _attached(stub, begin + at) for at in range(count)]
        print("attached", flush=True)
        await asyncio.gather(*map(_to_its_end, calls))


async def batch_with_a_kill(address: str, begin: int, count: int) -> Counter[str]:
    """Opens streams from another process, and kills it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.soak.streams", "--hold", address, str(begin), str(count)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    line = await process.stdout.readline()
    assert line == b"attached\n"
    process.kill()
    await process.wait()
    return Counter({"killed": count})


def in_flight(server: ServerProcess) -> int:
    """Returns how many `Work` calls the server has in hand."""
    with urllib.request.urlopen(f"http://{server.http}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("jobwire_rpc_in_flight") and METHOD in line:
                return int(float(line.rpartition(" ")[2]))
    raise LookupError(f"the metrics do not tell of {METHOD}")


def memory_mib(server: ServerProcess) -> float:
    """Returns the resident memory of the server's process."""
    assert server.process is not None
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@dataclass
class Figures:
    """What a soak found."""

    memory_mib: dict[int, float] = field(default_factory=dict)
    """Streams so far -> resident memory of the server, MiB, with none open."""
    ends: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    """Calls that the server still had at the end."""
    defects: int = 0
    """Lines of the server's log about defects of its own."""


@contextmanager
def running_server() -> Iterator[ServerProcess]:
    """Starts a store and a server on it."""
    store = StoreProcess("valkey")
    try:
        store.start()
        server = ServerProcess("--redis-url", store.url, *FLAGS)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        store.remove()


async def soak(server: ServerProcess, marks: list[int], kills_every: int = 20) -> Figures:
    """Opens and breaks off streams; measures the server at each mark.

    Args:
        server: Where.
        marks: Numbers of streams, growing; the last is how many there are in all.
        kills_every: Every so many batches, one is held by a process that is killed.
    """
    figures = Figures()
    async with Producer(server.address) as producer:
        await producer.submit(JOBS)
    done = batches = 0
    for mark in marks:
        while done < mark:
            count = min(AT_ONCE, mark - done)
            batches += 1
            how = batch_with_a_kill if batches % kills_every == 0 else batch
            figures.ends += await how(server.address, done, count)
            done += count
        async with asyncio.timeout(30):
            while True:
                figures.in_flight = in_flight(server)
                if figures.in_flight == 0:
                    break
                await asyncio.sleep(0.1)
        figures.memory_mib[mark] = memory_mib(server)
        print(f"{mark:>7} streams: {figures.memory_mib[mark]:.1f} MiB", flush=True)
    figures.defects = server.log.count("defect") + server.log.count("Traceback")
    return figures


def main() -> None:
    """Runs it by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=20_000)
    parser.add_argument("--hold", nargs=3, metavar=("ADDRESS", "BEGIN", "COUNT"))
    given = parser.parse_args()
    if given.hold:
        address, begin, count = given.hold
        asyncio.run(hold_until_killed(address, int(begin), int(count)))
        return
    steps = max(1, given.streams // 8)
    with running_server() as server:
        figures = asyncio.run(soak(server, [*range(steps, given.streams + 1, steps)]))
        for end, count in sorted(figures.ends.items()):
            print(f"{count:>7} {end}")
        print(f"open at the end: {figures.in_flight}; defects in the log: {figures.defects}")


if __name__ == "__main__":
    main()

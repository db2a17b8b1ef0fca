"""The jobs that are measured: 256 bytes of payload, as a producer would send them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator

from jobwire.v1 import job_pb2, job_service_pb2
from jobwire_server.broker.new_jobs import NewJobs
from jobwire_server.domain.ids import UlidFactory
from jobwire_server.domain.model import NewJob
from jobwire_server.domain.options import Limits
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.servicers.records import JobSpecRecords
from jobwire_server.servicers.submission import JobChecks
from jobwire_server.store.jobs import JobStore
from jobwire_server.store.queues import QueueStore
from jobwire_server.store.runner import ScriptRunner

from benchmarks.stores import Store

OPERATION = "bench.noop"
OTHER_OPERATION = "bench.waiting"
"""Of jobs that wait in a backlog: another route, which no worker of the benchmarks serves."""
PAYLOAD_BYTES = 256
SUBMIT_AT_ONCE = 500


def payload() -> bytes:
    """Returns a random payload."""
    return os.urandom(PAYLOAD_BYTES)


def request(
    data: bytes | None = None, operation: str = OPERATION
) -> job_service_pb2.SubmitJobRequest:
    """Returns a request to submit a job, with a random payload unless one is given."""
    return job_service_pb2.SubmitJobRequest(
        spec=job_pb2.JobSpec(
            operation=operation,
            payload=job_pb2.Payload(data=payload() if data is None else data),
        )
    )


class JobMaker:
    """Makes jobs as the server does of requests, for benchmarks that begin at the store."""

    def __init__(self, operation: str = OPERATION) -> None:
        clock = StoreClock()
        new_jobs = NewJobs(JobSpecRecords(), clock, UlidFactory(clock.now_ms).job_id)
        self._checks = JobChecks(Limits(), new_jobs, clock.now_ms)
        self._requests = [request(operation=operation) for _ in range(64)]

    def make(self, count: int) -> list[NewJob]:
        """Returns new jobs of the default queue."""
        requests = self._requests
        made = [self._checks.check(requests[number % len(requests)]) for number in range(count)]
        return [job for job in made if isinstance(job, NewJob)]

    def batches(self, count: int, size: int = SUBMIT_AT_ONCE) -> Iterator[list[NewJob]]:
        """Yields so many jobs in batches."""
        for made in range(0, count, size):
            yield self.make(min(size, count - made))


class Layers:
    """The store's layer on a store, without a server in front."""

    def __init__(self, store: Store) -> None:
        runner = ScriptRunner(store.connection)
        self.jobs = JobStore(runner, "benchmark")
        self.queues = QueueStore(runner)


async def fill(
    layers: Layers, queue: str, count: int, maker: JobMaker, say: Callable[[str], None]
) -> None:
    """Submits so many jobs to the queue."""
    done = 0
    for batch in maker.batches(count):
        await layers.jobs.submit(queue, batch)
        done += len(batch)
        if done % 100_000 == 0:
            say(f"{done:,} of {count:,} jobs submitted")


async def each(count: int, width: int, call: Callable[[int], Awaitable[None]]) -> None:
    """Makes so many calls, numbered from 0, with at most `width` under way at a time."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(caller())


async def paced(count: int, rate: float, call: Callable[[int], Awaitable[None]]) -> None:
    """Starts so many calls, numbered from 0, at a rate, whether or not those before have ended.

    Args:
        count: So many.
        rate: Calls a second.
        call: Makes one.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def one(number: int) -> None:
        await call(number)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            await asyncio.sleep(max(0.0, start + number / rate - loop.time()))
            group.create_task(one(number))

"""Measures a deployment with jobs that do nothing, in a queue of their own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from time import perf_counter

from jobwire._async.client import AsyncClient
from jobwire._async.handle import AsyncBatchError
from jobwire.context import Context
from jobwire.errors import NotFound
from jobwire.models import Job, JobState, NewJob
from jobwire.worker import Worker

OPERATION = "jobwire.bench"
QUEUE_PREFIX = "jobwire-bench-"
LOOK_S = 0.02
# Run before anything is measured, so that connections are open and the first claims are made.
WARM_UP_JOBS = 500
IDLE_JOBS = 200
"""Jobs submitted one after the other, each once the one before is accepted, or is done."""
CALLS_IN_FLIGHT = 100
CALLS = 1_000
"""Jobs submitted whose results are awaited by so many tasks."""
PAGE_JOBS = 1_000
STALLED_S = 30.0
"""The benchmark gives up if no job is done for this long."""


class BenchFailed(Exception):
    """The jobs were not all done, or the queue was not this benchmark's own."""


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a benchmark."""

    queue: str
    jobs: int
    payload_bytes: int
    batch: int
    """Jobs submitted together; 1: each by itself."""
    in_flight: int
    """Submissions under way at once."""
    concurrency: int
    """Handlers at once in the worker."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles."""

    p50: timedelta
    p90: timedelta
    p99: timedelta
    most: timedelta


@dataclass(frozen=True, slots=True)
class BenchResult:
    """The figures of a benchmark."""

    jobs: int
    payload_bytes: int
    batch: int
    in_flight: int
    submitted_per_s: float
    """From the first call to the last answer."""
    done_per_s: float
    """From the first call until every result was stored."""
    start_latency: Latency
    """From the submission of a job to its start, at full speed. This and the three below are by
    the servers' clock, which has milliseconds."""
    done_latency: Latency
    """From the submission of a job to its stored result, at full speed."""
    idle_start_latency: Latency
    """The same with one job at a time."""
    idle_done_latency: Latency
    submit_one_per_s: float
    """Submissions one by one while the queue is paused, so that nobody works."""
    submit_one_latency: Latency
    """Of each of them. This and the two below are by this process's clock."""
    call_latency: Latency
    """From the submission of a job until its result was here, one by one."""
    calls_in_flight: int
    calls_per_s: float
    """Results a second with so many awaited at once."""
    calls_latency: Latency


async def measure(
    client: AsyncClient, worker: Worker, load: Load, say: Callable[[str], None]
) -> BenchResult:
    """Measure, and purge its jobs at the end, however it ends.

    Args:
        client: To submit with.
        worker: Connected to the same servers, without handlers; for this benchmark only.
        load: The load.
        say: Prints how far it is.

    Raises:
        BenchFailed: The queue is in use, or jobs were not done.
        CallError: A call failed.
    """
    await _check_unused(client, load.queue)

    @worker.operation(OPERATION)
    async def nothing(context: Context) -> None:
        return None

    try:
        async with worker:
            return await _Bench(client, load, say).run()
    finally:
        await _forget(client, load.queue)


class _Bench:
    def __init__(self, client: AsyncClient, load: Load, say: Callable[[str], None]) -> None:
        self._client = client
        self._load = load
        self._say = say
        self._payload = os.urandom(load.payload_bytes)
        self._done = 0

    async def run(self) -> BenchResult:
        load = self._load
        self._say("warming up")
        await self._through(min(load.jobs, WARM_UP_JOBS))
        await _forget(self._client, load.queue)
        self._done = 0
        self._say(f"{load.jobs:,} jobs at full speed")
        began = perf_counter()
        submitted_s = await self._through(load.jobs)
        took_s = perf_counter() - began
        busy = await self._ended(load.jobs)
        await _forget(self._client, load.queue)
        self._done = 0
        idle_jobs = min(load.jobs, IDLE_JOBS)
        self._say(f"{idle_jobs:,} jobs one by one")
        calls = await _timed(self._call, idle_jobs)
        idle = await self._ended(idle_jobs)
        await _forget(self._client, load.queue)
        many = min(load.jobs, CALLS)
        self._say(f"{many:,} jobs whose results are awaited, {CALLS_IN_FLIGHT} at once")
        wide = await _timed(self._call, many, CALLS_IN_FLIGHT)
        await self._ended(many)
        await _forget(self._client, load.queue)
        self._say(f"{idle_jobs:,} submissions one by one")
        async with _paused(self._client, load.queue):
            submits = await _timed(self._submit_one, idle_jobs)
        self._done = idle_jobs
        await self._all_done()
        return BenchResult(
            jobs=load.jobs,
            payload_bytes=load.payload_bytes,
            batch=load.batch,
            in_flight=load.in_flight,
            submitted_per_s=load.jobs / submitted_s,
            done_per_s=load.jobs / took_s,
            start_latency=_latency(busy, _to_start),
            done_latency=_latency(busy, _to_end),
            idle_start_latency=_latency(idle, _to_start),
            idle_done_latency=_latency(idle, _to_end),
            submit_one_per_s=submits.per_s,
            submit_one_latency=submits.latency,
            call_latency=calls.latency,
            calls_in_flight=CALLS_IN_FLIGHT,
            calls_per_s=wide.per_s,
            calls_latency=wide.latency,
        )

    async def _through(self, count: int) -> float:
        """Submit jobs and wait until they are done; return how long the submission took."""
        load, self._done = self._load, self._done + count
        sizes = iter([min(load.batch, count - at) for at in range(0, count, load.batch)])
        began = perf_counter()

        async def submit() -> None:
            for size in sizes:
                await self._submit(size)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(load.in_flight):
                    group.create_task(submit())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # one stands for all of them
        took_s = perf_counter() - began
        await self._all_done()
        return took_s

    async def _submit(self, size: int) -> None:
        queue = self._load.queue
        if self._load.batch == 1:
            await self._submit_one()
            return
        job = NewJob(operation=OPERATION, payload=self._payload, queue=queue)
        try:
            await self._client.submit_many([job] * size)
        except AsyncBatchError as error:
            # They are all alike, so one error stands for all.
            raise next(iter(error.errors.values())) from None

    async def _submit_one(self) -> None:
        await self._client.submit(OPERATION, self._payload, queue=self._load.queue)

    async def _call(self) -> None:
        queue = self._load.queue
        await self._client.call(OPERATION, self._payload, queue=queue, timeout=STALLED_S)

    async def _all_done(self) -> None:
        seen, since = -1, perf_counter()
        while seen < self._done:
            depth = (await self._client.queue(self._load.queue)).counts
            done = depth.get(JobState.SUCCEEDED, 0)
            if done > seen:
                seen, since = done, perf_counter()
            elif perf_counter() - since > STALLED_S:
                raise BenchFailed(
                    f"{self._done - seen:,} of {self._done:,} jobs are not done, and none was in"
                    f" the last {STALLED_S:g} s"
                )
            await asyncio.sleep(LOOK_S)

    async def _ended(self, count: int) -> list[Job]:
        """Return the jobs that have succeeded; there must be so many, each with one attempt."""
        states = [JobState.SUCCEEDED]
        found = self._client.list_jobs(self._load.queue, states=states, page_size=PAGE_JOBS)
        jobs = [job async for job in found]
        if len(jobs) != count or any(job.attempt != 1 for job in jobs):
            raise BenchFailed(f"{len(jobs):,} of {count:,} jobs are done, or some ran twice")
        return jobs


@dataclass(frozen=True, slots=True)
class _Timed:
    per_s: float
    latency: Latency


async def _timed(call: Callable[[], Awaitable[None]], count: int, width: int = 1) -> _Timed:
    """Make so many calls, so many at once."""
    spans: list[timedelta] = []
    left = iter(range(count))

    async def caller() -> None:
        for _ in left:
            since = perf_counter()
            await call()
            spans.append(timedelta(seconds=perf_counter() - since))

    began = perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(caller())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None  # one stands for all of them
    return _Timed(count / (perf_counter() - began), _percentiles(spans))


@asynccontextmanager
async def _paused(client: AsyncClient, queue: str) -> AsyncGenerator[None]:
    await client.pause(queue, allow_missing=True)
    try:
        yield
    finally:
        await client.resume(queue)


async def _check_unused(client: AsyncClient, queue: str) -> None:
    try:
        info = await client.queue(queue)
    except NotFound:
        return
    depth = info.counts
    if depth:
        found = ", ".join(f"{count} {state.value}" for state, count in depth.items())
        raise BenchFailed(
            f"the queue {queue} holds jobs ({found}): another benchmark is running or was killed;"
            " use another --name, or cancel and purge them"
        )
    if info.paused:  # by a benchmark that was killed
        await client.resume(queue)


async def _forget(client: AsyncClient, queue: str) -> None:
    """Cancel and purge what the queue holds."""
    try:
        depth = (await client.queue(queue)).counts
        if any(not state.is_terminal for state in depth):
            await client.cancel_jobs(queue, reason="the benchmark has ended").wait()
        await client.purge_jobs(queue).wait()
    except NotFound:
        return  # nothing was ever submitted


def _to_start(job: Job) -> timedelta:
    assert job.created_at is not None
    assert job.started_at is not None
    return job.started_at - job.created_at


def _to_end(job: Job) -> timedelta:
    assert job.created_at is not None
    assert job.finished_at is not None
    return job.finished_at - job.created_at


def _latency(jobs: Sequence[Job], span: Callable[[Job], timedelta]) -> Latency:
    return _percentiles([span(job) for job in jobs])


def _percentiles(spans: Sequence[timedelta]) -> Latency:
    ordered = sorted(spans)

    def at(fraction: float) -> timedelta:
        return ordered[min(int(len(ordered) * fraction), len(ordered) - 1)]

    return Latency(p50=at(0.5), p90=at(0.9), p99=at(0.99), most=ordered[-1])

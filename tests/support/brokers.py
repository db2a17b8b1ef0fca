"""Routers on real stores, with a clock that tests move and a hand on the background loops."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import redis

from jobwire_server.broker.router import Router
from jobwire_server.broker.wiring import Parts, build_parts
from jobwire_server.domain.model import (
    Accepted,
    Assignment,
    Completed,
    Completion,
    Failure,
    Job,
    JobState,
    NewJob,
    Released,
    Renewal,
    WorkerReport,
    Written,
)
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.servicers.records import JobSpecRecords
from jobwire_server.store.connection.connect import connect
from jobwire_server.store.upkeep import WHENEVER_MS
from jobwire_server.watch.watched_job import OutputEvent

from tests.support.dump import QueueDump, check_invariants, dump_queue
from tests.support.jobs import DAY_MS, new_job, ulid_of, worker_spec

QUIET = BrokerOptions(tick_ms=DAY_MS, worker_timeout_ms=10 * DAY_MS)
"""No background loop gets to do anything by itself within a test."""


class Broker:
    """A running router and what lies under it.

    Args:
        router: Started.
        parts: What it is made of.
        client: A synchronous client of the same store.
    """

    def __init__(self, router: Router, parts: Parts, client: redis.Redis) -> None:
        self.router = router
        self.parts = parts
        self.client = client

    # The clock and the loops ------------------------------------------------

    def shift(self, ms: int) -> None:
        """Moves the clock of every script that this router runs."""
        self.parts.runner.clock_shift_ms += ms

    async def settle(self, queue: str = "default") -> None:
        """Lets the clock act on a queue until it has nothing more to do now."""
        while True:
            tick = await self.parts.upkeep.tick(queue, 200, DAY_MS, 5_000, 13)
            await self.parts.held.end_overdue(queue, tick.overdue)
            if tick.schedules:
                await self.parts.due_schedules.fire(queue, tick.schedules)
            if not tick.more and not tick.overdue and not tick.schedules:
                break

    async def after(self, ms: int, queue: str = "default") -> None:
        """Moves the clock and lets it act."""
        self.shift(ms)
        await self.settle(queue)

    async def sweep(self) -> None:
        """Looks once for silent workers."""
        await self.parts.reaper.sweep(WHENEVER_MS)

    # Shortcuts --------------------------------------------------------------

    async def watch(self, ulid: str, queue: str = "default") -> AsyncGenerator[Job | None, None]:
        """The states of a job as its watcher is told them; None is a sign of life."""
        async with aclosing(self.router.watch_job(queue, ulid)) as stream:  # type: ignore[type-var]
            async for event, _ in stream:
                assert not isinstance(event, OutputEvent)
                yield event.job if event else None

    async def submit(self, *jobs: NewJob) -> list[str]:
        """Submits jobs of one queue, one job if none is named; returns their ULIDs."""
        given = jobs or (new_job(),)
        accepted = await self.submitted(*given)
        return [ulid_of(answer.job_id) for answer in accepted]

    async def submitted(self, *jobs: NewJob) -> list[Accepted]:
        """Submits jobs of one queue; returns the answers."""
        answers = await self.router.submissions.submit(jobs[0].queue, jobs)
        return [answer for answer in answers if isinstance(answer, Accepted)]

    async def register(self, worker_id: str = "w1", *, lease_ms: int = 0) -> None:
        """Registers a worker for what `new_job` makes."""
        await self.router.register_worker(worker_spec(worker_id, lease_ms=lease_ms))

    async def claim(
        self,
        worker_id: str = "w1",
        most: int = 1,
        *,
        wait_ms: int = 0,
        queues: Sequence[str] = (),
    ) -> list[Assignment]:
        """Claims for a registered worker, without taking its cancellations."""
        assignments, _ = await self.parts.claims.claim(worker_id, queues, most, wait_ms)
        return assignments

    async def claim_job(self, worker_id: str, queue: str, ulid: str) -> Assignment:
        """Claims one job by its id, without taking cancellations."""
        job = await self.router.get_job(queue, ulid, full=False)
        facts = JobSpecRecords().facts(job.record)
        claimed, _ = await self.parts.claims.claim_job(worker_id, job, facts)
        return claimed

    async def claim_one(self, worker_id: str = "w1") -> Assignment:
        """Claims the one job that there must be."""
        (assignment,) = await self.claim(worker_id)
        return assignment

    async def succeed(
        self, queue: str, ulid: str, worker_id: str, token: int, result: bytes
    ) -> Completed:
        """Completes a job with a result."""
        return await self.router.complete(worker_id, Completion(queue, ulid, token, result))

    async def fail(
        self, queue: str, ulid: str, worker_id: str, token: int, failure: Failure
    ) -> Completed:
        """Ends an attempt with a failure."""
        return await self.router.complete(worker_id, Completion(queue, ulid, token, failure))

    async def release(
        self, queue: str, ulid: str, worker_id: str, token: int, started: bool, reason: str
    ) -> Completed:
        """Gives a job back."""
        released = Released(started, reason)
        return await self.router.complete(worker_id, Completion(queue, ulid, token, released))

    async def confirm_cancel(self, queue: str, ulid: str, worker_id: str, token: int) -> Completed:
        """Ends an attempt because of a cancellation."""
        return await self.router.complete(worker_id, Completion(queue, ulid, token, None))

    async def report(
        self,
        queue: str,
        ulid: str,
        worker_id: str,
        token: int,
        progress: bytes,
        output: Written | None = None,
        checkpoint: bytes | None = None,
    ) -> Renewal:
        """Reports from a running job."""
        reported = WorkerReport(queue, ulid, token, progress, output, checkpoint)
        return await self.router.report(worker_id, reported)

    async def job(self, ulid: str, queue: str = "default") -> Job:
        """Reads a job in full."""
        return await self.router.get_job(queue, ulid)

    async def state(self, ulid: str, queue: str = "default") -> JobState:
        """Reads a job's state."""
        return (await self.job(ulid, queue)).state

    def now_ms(self) -> int:
        """Returns the store's time as scripts see it."""
        seconds, micros = self.client.time()
        return int(seconds * 1000 + micros // 1000 + self.parts.runner.clock_shift_ms)

    def dump(self, queue: str = "default") -> dict[str, object]:
        """Returns every key of the queue."""
        return {**dump_queue(self.client, queue)}

    def check(self, queue: str = "default") -> QueueDump:
        """Checks the invariants of the queue."""
        return check_invariants(self.client, queue)


@asynccontextmanager
async def running_broker(
    url: str,
    options: BrokerOptions = QUIET,
    server_id: str = "s1",
    *,
    random_fraction: Callable[[], float] = lambda: 0.5,
    moments_settled: Callable[[str, int], None] = lambda outcome, count: None,
    **changed: object,
) -> AsyncIterator[Broker]:
    """Runs a router on the store.

    Args:
        url: The store.
        options: How jobs are treated.
        server_id: Unique among those that run.
        random_fraction: For the jitter of backoffs.
        moments_settled: Told of the moments of schedules.
        changed: Single options in place of those.
    """
    connection = connect(url)
    parts = build_parts(
        connection,
        replace(options, **changed),  # type: ignore[arg-type]
        JobSpecRecords(),
        server_id,
        random_fraction=random_fraction,
        moments_settled=moments_settled,
    )
    router = Router(parts)
    client = redis.Redis.from_url(url)
    await router.start()
    try:
        yield Broker(router, parts, client)
    finally:
        await router.stop()
        await connection.close()
        client.close()

"""Streams that are to be left: for their age, by an operator's wish, because the server goes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from jobwire.v1.job_pb2 import JOB_STATE_RUNNING, JOB_STATE_SUCCEEDED
from jobwire_server.domain.model import WorkerStatus
from jobwire_server.workers.session_times import SessionTimes

from tests.support.streams import (
    PATIENCE_S,
    QUICK,
    Producer,
    RawWorker,
    StreamServer,
    stream_server,
)
from tests.support.waiting import eventually


async def drained(worker: RawWorker) -> None:
    """Waits until the worker is asked to leave the stream."""
    await eventually(lambda: bool(worker.drains), "a drain", timeout_s=PATIENCE_S)


async def test_a_stream_of_its_age_is_drained_and_ended_at_the_deadline(valkey_url: str) -> None:
    options = replace(QUICK, max_stream_age_ms=1_000, drain_deadline_ms=1_000)
    async with (
        stream_server(valkey_url, options) as server,
        Producer(server.address) as producer,
        RawWorker(server.address) as worker,
    ):
        (job_id,) = await producer.submit()
        await worker.attach()
        (assignment,) = await worker.jobs(1)
        await drained(worker)
        (drain,) = worker.drains
        assert (drain.leave, drain.reason) == (False, "the stream has reached its age")
        before = server.router.clock.now_ms()
        assert before - 5_000 < drain.deadline.ToMilliseconds() < before + 1_500
        # No more jobs on this one; another stream takes over.
        await producer.submit()
        async with RawWorker(server.address) as next_stream:
            await next_stream.attach([assignment])
            await next_stream.jobs(1)
            code, _ = await worker.end()
            assert code.name == "ABORTED"
            assert len(worker.got) == 1
            await drained(next_stream)
            code, details = await next_stream.end()
            assert code.name == "UNAVAILABLE"
            assert details == "the stream was to be left by its deadline"
        job = await producer.job(job_id)
        assert (job.state, job.crashes) == (JOB_STATE_RUNNING, 0)


async def test_streams_that_attached_together_do_not_reach_their_age_together(
    server: StreamServer,
) -> None:
    ages = {SessionTimes.of(QUICK, 10_000).age_s for _ in range(50)}
    planned = QUICK.max_stream_age_ms / 1000
    assert len(ages) > 40
    assert planned * 0.9 <= min(ages)
    assert max(ages) <= planned * 1.1


async def test_an_operator_lets_a_worker_finish_and_leave(
    server: StreamServer, second: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit()
    async with RawWorker(server.address) as worker:
        await worker.attach()
        jobs = await worker.jobs(1)
        # Through the other server.
        await second.router.set_worker_status("w1", WorkerStatus.DRAINING)
        await drained(worker)
        assert worker.drains[0].leave
        await producer.submit()
        assert not (await worker.complete(*jobs)).refused
        code, _ = await worker.leave()
        assert code.name == "OK"
        assert len(worker.got) == 1
        assert len(worker.drains) == 1
        assert (await producer.job(job_id)).state == JOB_STATE_SUCCEEDED
        assert await server.router.operators.find_worker("w1") is None


async def test_an_operators_wish_holds_for_the_next_stream_of_the_process(
    server: StreamServer, second: StreamServer, producer: Producer
) -> None:
    async with RawWorker(server.address) as worker:
        await worker.attach()
        await server.router.set_worker_status("w1", WorkerStatus.DRAINING)
        await drained(worker)
        async with RawWorker(second.address) as moved:
            await moved.attach()
            await drained(moved)
            assert moved.drains[0].leave
            # Another process of that name is another worker.
            async with RawWorker(second.address, instance="i2") as anew:
                await anew.attach()
                (job_id,) = await producer.submit()
                (assignment,) = await anew.jobs(1)
                assert assignment.job_id == job_id
                assert not anew.drains


async def test_a_draining_server_lets_workers_finish_and_sends_them_away(
    server: StreamServer, second: StreamServer, producer: Producer
) -> None:
    await producer.submit(2)
    async with (
        RawWorker(server.address, "idle", operations=["other"]) as idle,
        RawWorker(server.address, "busy", credits=2) as busy,
        RawWorker(server.address, "mover", credits=1) as mover,
    ):
        await idle.attach()
        await busy.attach()
        jobs = await busy.jobs(2)
        await mover.attach()
        await producer.submit()
        (moved,) = await mover.jobs(1)
        await server.router.drain(30.0)
        for worker in (idle, busy, mover):
            await drained(worker)
            assert not worker.drains[0].leave
        # One that holds nothing is let go at once.
        code, details = await idle.end()
        assert code.name == "UNAVAILABLE"
        assert "shutting down" in details
        # One that moves takes its leases along.
        async with RawWorker(second.address, "mover") as there:
            attached = await there.attach([moved])
            assert not attached.lost_leases
            assert not (await there.complete(moved)).refused
        # One that stays is heard to the end.
        assert not (await busy.complete(*jobs)).refused
        code, _ = await busy.end()
        assert code.name == "UNAVAILABLE"
        for assignment in [*jobs, moved]:
            job = await producer.job(assignment.job_id)
            assert job.state == JOB_STATE_SUCCEEDED
            assert (job.failures, job.crashes, job.interruptions) == (0, 0, 0)
        async with RawWorker(server.address) as late:
            await late.send(attach=late.first)
            code, _ = await late.end()
            assert code.name == "UNAVAILABLE"


async def test_a_worker_that_attaches_while_its_server_begins_to_drain_is_sent_on(
    server: StreamServer,
) -> None:
    workers = server.parts.workers
    attach = workers.attach
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*args: str) -> object:
        asked.set()
        await go_on.wait()
        return await attach(*args)  # type: ignore[arg-type]

    workers.attach = slow  # type: ignore[method-assign,assignment]
    async with RawWorker(server.address) as worker:
        attaching = asyncio.create_task(worker.attach())
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        await server.router.drain(30.0)
        go_on.set()
        await attaching
        await drained(worker)
        code, _ = await worker.end()
        assert code.name == "UNAVAILABLE"
